"""``align data show``: what is printed for a file, with its faults and its attempts on the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from align.cli import main
from align.core.data.encode import Encoder
from align.core.data.examples import Example, TokenSequence
from align.core.data.preview import format_example, preview_source, visible
from align.schemas.run import Source
from tests.core import families
from tests.core.families import assistant, settings, user
from tests.tiny import tiny_tokenizer


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def show(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", "show", *map(str, arguments)])


def test_what_is_scored_is_marked_in_each_row(tmp_path: Path, tiny_model_dir: Path) -> None:
    chats = [[user(f"What is {i}?"), assistant(f"It is {i}.")] for i in range(5)]
    file = written(tmp_path / "chat.jsonl", *({"messages": chat} for chat in chats))
    result = show(file, "--model", tiny_model_dir, "--rows", 2)
    assert result.exit_code == 0, result.output
    for i in range(2):
        assert f"chat.jsonl:{i + 1}\n" in result.output
        assert f"What is {i}?<|im_end|>↵\n<|im_start|>assistant↵\n[[It is {i}.<|im_end|>]]↵\n" in result.output
    assert "It is 2." not in result.output
    assert result.output.endswith("readable rows: 5; 0 bad rows; findings: 0\n")
    assert "[[scored]]" in result.output


def test_the_algorithm_decides_what_is_scored(tmp_path: Path, tiny_model_dir: Path) -> None:
    pair = {"prompt": "What is", "chosen": " the sum", "rejected": " the sea", "margin": 0.5}
    file = written(tmp_path / "pairs.jsonl", pair)
    result = show(file, "--model", tiny_model_dir, "--algorithm", "dpo")
    assert "chosen: 6 tokens, 3 scored\nWhat is[[ the sum<|im_end|>]]" in result.output
    assert "rejected: 6 tokens, 3 scored\nWhat is[[ the sea<|im_end|>]]" in result.output
    assert "margin 0.5" in result.output
    result = show(file, "--model", tiny_model_dir, "--algorithm", "reward_model")
    assert "What is the sum[[<|im_end|>]]" in result.output


def test_weights_and_special_tokens_are_shown(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Through the readers: what a message weighs, and that a spelt token is refused until it is named."""
    chat = [user("Why?"), {**assistant("So."), "train": False}, user("Why?"), assistant("So.")]
    result = show(written(tmp_path / "chat.jsonl", {"messages": chat}), "--model", tiny_model_dir)
    assert result.output.count("[[So.<|im_end|>]]") == 1, result.output
    assert "assistant↵\nSo.<|im_end|>" in result.output
    file = written(tmp_path / "spelt.jsonl", {"messages": [user("Why?"), assistant("<|im_start|>So.")]})
    result = show(file, "--model", tiny_model_dir)
    assert result.exit_code == 1
    assert "special-token-unclear" in result.output
    result = show(file, "--model", tiny_model_dir, "--special-token", "<|im_start|>")
    assert result.exit_code == 0, result.output
    assert "special-token-meant" in result.output
    result = show(file, "--model", tiny_model_dir, "--allow", "special-token-unclear")
    assert result.exit_code == 0, result.output
    result = show(file, "--model", tiny_model_dir, "--special-token", "<|im_stort|>")
    assert "did you mean '<|im_start|>'?" in result.output + str(result.exception)


def test_findings_are_over_all_rows_and_errors_end_with_1(tmp_path: Path, tiny_model_dir: Path) -> None:
    good = {"messages": [user("Why?"), assistant("So.")]}
    bad = {"messages": [user("Why?"), assistant("So. " * 400)]}
    file = written(tmp_path / "chat.jsonl", good, bad, good, bad)
    result = show(file, "--model", tiny_model_dir, "--rows", 1, "--max-length", 64)
    assert result.exit_code == 1
    assert re.search(
        r"error: \S*chat.jsonl:2, \S*chat.jsonl:4\n +truncation: longer than data.max_length", result.output
    )
    assert ": 2 rows, " in result.output
    assert "data.truncation_mode: drop" in result.output


def test_bad_rows_and_rows_that_give_nothing_are_told(tmp_path: Path, tiny_model_dir: Path) -> None:
    file = written(tmp_path / "pairs.jsonl", {"prompt": "What is t", "completion": "he sum"})
    with file.open("a") as more:
        more.write('{"prompt": \n')
    result = show(file, "--model", tiny_model_dir)
    assert result.exit_code == 1
    assert "pairs.jsonl:1: gives nothing to learn from" in result.output
    assert "boundary-merge" in result.output
    assert "malformed-json" in result.output
    assert result.output.endswith("readable rows: 1; 1 bad row (1 malformed-json); findings: 1\n")


def test_another_template_can_be_tried(tmp_path: Path, tiny_model_dir: Path) -> None:
    file = written(tmp_path / "chat.jsonl", {"messages": [user("Why?"), assistant("So.")]})
    template = tmp_path / "chat.jinja"
    template.write_text("Be kind. " + families.CHATML)
    result = show(file, "--model", tiny_model_dir, "--chat-template", template)
    assert "Be kind.<|im_start|>user↵\nWhy?" in result.output


def test_data_cannot_speak_to_the_terminal(tmp_path: Path, tiny_model_dir: Path) -> None:
    evil = "\x1b[31mred\x1b]0;title\x07\r\x9b2J [bold]b[/bold] \u202ereversed"
    file = written(tmp_path / "chat.jsonl", {"messages": [user(evil), assistant("No.")]})
    result = show(file, "--model", tiny_model_dir)
    assert result.exit_code == 0, result.output
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", result.output)
    assert r"\x1b[31mred\x1b]0;title\x07\r\x9b2J [bold]b[/bold] \u202ereversed" in result.output
    assert visible("a\nb\tc\x1b") == "a\nb\\tc\\x1b"


def test_with_colour_the_styles_tell_and_the_text_stays() -> None:
    encoder = Encoder(tiny_tokenizer())
    ids = encoder.encode("the sum")
    example = Example("f:1", (TokenSequence("text", ids, ids == ids[-1]),))
    text = format_example(example, encoder, colour=True)
    assert text.plain == f"f:1\ntext: {len(ids)} tokens, 1 scored\nthe sum"
    assert {str(span.style).split()[0] for span in text.spans if span.end == len(text)} >= {"green"}


def test_every_row_is_examined_however_many_there_are(tmp_path: Path) -> None:
    rows = [{"messages": [user("Why?"), assistant("So. " * (40 if i == 620 else 1))]} for i in range(1, 701)]
    source = Source(path=str(written(tmp_path / "chat.jsonl", *rows)))
    seen = preview_source(source, Encoder(tiny_tokenizer()), settings(max_length=64), 1)
    assert (seen.rows, len(seen.first)) == (700, 1)
    assert [(finding.id, finding.rows) for finding in seen.findings] == [("truncation", (f"{source.path}:620",))]
