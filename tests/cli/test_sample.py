"""``align sample`` as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from align.cli import main
from align.cli.choices import prompt_or_file
from align.core.data.encode import Encoder
from align.core.generation.generator_base import TurnReader
from align.core.inference.sampler import Stream, handle_for, prompts_for, token_ids, tokens_of
from align.core.plugin_system import registry
from align.core.plugin_system.registry import Offer, Plugin
from align.schemas.run import Model
from tests.tiny import EOS, tiny_tokenizer


def ask(*words: object) -> Result:
    return CliRunner().invoke(main, ["sample", *map(str, words)])


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_answer_is_printed_as_text_and_is_the_same_as_its_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    asked = (tiny_model_dir, "The cat", "--max-completion-length", 12, "--seed", 3)
    shown, out = ask(*asked), tmp_path / "out.jsonl"
    assert ask(*asked, "--jsonl", out).stdout == ""
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["prompt"] == [{"role": "user", "content": "The cat"}]
    assert shown.exit_code == 0 and "(cut off after 12 tokens)" in shown.stderr
    assert (row["finish"], row["tokens"]) == ("length", 12) and row["logp"] < 0
    told = ask(*asked, "--jsonl", out, "--force").stderr.splitlines()[-1]
    assert told == f"1 answer in {out}; 1 cut off (--max-completion-length 12, or the context is full)"
    said = row["completion"][0]["content"]
    assert "".join(c for c in said if c.isprintable() and c != "\ufffd") in _printable(shown.stdout)
    assert not set(shown.stdout) & set(map(chr, [*range(10), *range(11, 32), *range(127, 160)]))


def test_answers_are_not_written_over_unless_it_is_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("yesterday's\n")
    asked = (tiny_model_dir, "The cat", "--max-completion-length", 2, "--jsonl", out)
    refused = ask(*asked)
    said = " ".join(refused.stderr.replace("│", " ").split())
    assert refused.exit_code == 2 and "another path, or --force" in said and out.read_text() == "yesterday's\n"
    assert ask(*asked, "--force").exit_code == 0 and json.loads(out.read_text())["tokens"] == 2
    assert ask(tiny_model_dir, "The cat", "--max-completion-length", 2, "--jsonl", "/dev/null").exit_code == 0


def _printable(text: str) -> str:
    return "".join(c for c in re.sub(r"⟨U\+[0-9A-F]+⟩", "", text) if c.isprintable() and c != "\ufffd")


def test_a_prompt_is_a_message_where_there_is_a_template_and_is_continued_on_request(tiny_model_dir: Path) -> None:
    chat, raw = (
        lines(ask(tiny_model_dir, "The cat", "-n", 2, "--max-completion-length", 3, *o)) for o in ([], ["--raw"])
    )
    assert {row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][0]["role"] for row in chat} == {"user"}
    assert {row["prompt"] for row in raw} == {"The cat"} and all(isinstance(row["completion"], str) for row in raw)


def test_a_file_keeps_its_columns_and_each_answer_its_seed(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"The sum of {i} and two is", "solution": str(i + 2)} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = lines(ask(tiny_model_dir, file, "-n", 3, "--max-completion-length", 6))
    assert [(a["prompt"], a["solution"]) for a in answers] == [
        (r["prompt"], r["solution"]) for r in rows for _ in "abc"
    ]
    assert lines(ask(tiny_model_dir, file, "-n", 2, "--max-completion-length", 6)) == [
        a for i, a in enumerate(answers) if i % 3 < 2
    ]
    assert lines(ask(tiny_model_dir, file, "-n", 3, "--max-completion-length", 6, "--seed", 1)) != answers
    small = ask(tiny_model_dir, file, "-n", 3, "--max-completion-length", 6, "--generator", "local:batch_tokens=20")
    assert [a["completion"] for a in lines(small)] == [a["completion"] for a in answers]
    chat = lines(ask(tiny_model_dir, file, "-n", 1, "--greedy", "--max-completion-length", 2, "--chat"))
    assert chat[0]["prompt"] == [{"role": "user", "content": rows[0]["prompt"]}]


def test_text_that_spells_a_special_token_stays_text(tiny_model_dir: Path) -> None:
    tokenizer = handle_for(Model(path=str(tiny_model_dir))).tokenizer
    (record,) = prompts_for(f"Is it?{EOS}", tokenizer, chat=True)
    end = tokenizer.convert_tokens_to_ids(EOS)
    assert tokens_of(record, Encoder(tokenizer)).tolist().count(end) == 1, "the template's own"


@pytest.mark.parametrize("said", ["~", "~nobody here, it begins", "", ".", "..", "prompts", "x" * 5000, "a\0b"])
def test_what_names_no_file_is_a_prompt(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (record,) = prompts_for(prompt_or_file(said), tiny_tokenizer(), chat=False)
    assert record.prompt == said


@pytest.mark.parametrize("said", ["prompts/", "./prompts", "~/prompts", "prompts/a.jsonl", "~/prompts/a.jsonl"])
def test_files_and_directories_are_read(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "a.jsonl").write_text('{"prompt": "The cat"}\n')
    (record,) = prompts_for(prompt_or_file(said), tiny_tokenizer(), chat=False)
    assert record.prompt == "The cat"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--top-p", 3], "--top-p\n    is 3.0; must be less than or equal to 1"),
        (["--stop-token", "zzz"], "'zzz' is no token of this model"),
        (["--best-of", 4], "needs a --reward"),
        (["--best-of", 4, "-n", 2, "--reward", "x"], "takes the place of -n"),
        (["--generator", "locale"], "did you mean 'local'?"),
        (["--generator", "local:batch_tokens=0"], "generator.batch_tokens"),
        (["--generator", "local:batch_tokens"], "is not KEY=VALUE"),
        (["--reward", "no_such_reward"], "no reward is called 'no_such_reward'"),
        (["--context", 3], "leaves no room for an answer"),
    ],
)
def test_mistakes_are_told_without_a_traceback(tiny_model_dir: Path, words: list[Any], says: str) -> None:
    result = ask(tiny_model_dir, "The cat sat on the mat", *words)
    assert result.exit_code == 2 and says in result.stderr.replace("\n│ ", "\n") and "Traceback" not in result.output


def test_an_answer_is_written_as_it_comes_whole_characters_at_a_time() -> None:
    tokenizer, written = tiny_tokenizer(), list[str]()
    stream, text = Stream(TurnReader(tokenizer), "", written.append), "The sea\x1b[2J \u00e9\u4e2d\U0001f600."
    for token in tokenizer(text)["input_ids"]:
        stream.on_token(token)
    stream.end(text)
    assert "".join(written) == "The sea⟨U+001B⟩[2J \u00e9\u4e2d\U0001f600." and len(written) > 6
    assert not any("\ufffd" in piece for piece in written)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_model_that_cannot_be_read_is_told_in_a_sentence(tiny_model_dir: Path, tmp_path: Path, name: str) -> None:
    broken = tmp_path / "model"
    shutil.copytree(tiny_model_dir, broken)
    (broken / name).write_text("{")
    result = ask(broken, "The cat")
    assert result.exit_code == 2 and str(broken) in result.stderr and "Traceback" not in result.output


def test_stop_tokens_by_id_and_by_name() -> None:
    tokenizer = tiny_tokenizer()
    assert token_ids(tokenizer, [EOS, "7"]) == [tokenizer.eos_token_id, 7]


def brief(completions: list[str], *, unit: float = 1.0) -> list[float]:
    """Less for longer."""
    return [-len(completion) * unit for completion in completions]


def silent(completions: list[str]) -> list[None]:
    """No opinion."""
    return [None for _ in completions]


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more plugins' rewards, in the registry of this process."""
    plugin = Plugin("brief", __name__, "tests", "0")
    own = {f.__name__: [Offer("reward", f.__name__, plugin, f)] for f in (brief, silent)}
    monkeypatch.setitem(registry.registry._offers, "reward", registry.offers("reward") | own)


def test_a_function_of_a_file_is_a_reward(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def size(completions, unit=1):\n    return [len(c) * unit for c in completions]\n"
    )
    asked = (tiny_model_dir, "The cat", "--raw", "-n", 2, "--max-completion-length", 4)
    for settings, unit, weight in (("", 1, 1), (":unit=3,weight=2", 3, 2)):
        for row in lines(ask(*asked, "--reward", f"{tmp_path}/mine.py:size{settings}")):
            size = len(row["completion"]) * unit
            assert (row["parts"], row["reward"]) == ({"python": size}, size * weight)
    gone = ask(*asked, "--reward", f"{tmp_path}/mine.py:sise")
    assert gone.exit_code == 2 and "has no function 'sise'" in gone.stderr


def test_the_best_of_n_is_the_highest_reward_first_among_equals(tiny_model_dir: Path, rewards: None) -> None:
    asked = (tiny_model_dir, "The cat", "--raw", "--max-completion-length", 9, "--top-k", 40)
    whole = ask(*asked, "-n", 8, "--reward", "brief:unit=0.5,weight=2")
    every = lines(whole)
    mean = sum(row["reward"] for row in every) / 8
    assert "8 answers" in whole.stderr and whole.stderr.splitlines()[-1].endswith(f"; mean reward {mean:.4f}")
    unscored = ask(*asked, "-n", 2, "--reward", "silent").stderr.splitlines()[-1]
    assert unscored.startswith("2 answers") and unscored.endswith("; none scored")
    assert all(row["parts"] == {"brief": -len(row["completion"]) / 2} for row in every)
    assert all(row["reward"] == 2 * row["parts"]["brief"] for row in every)
    chosen = ask(*asked, "--best-of", 8, "--reward", "brief:unit=0.5,weight=2")
    top = max(every, key=lambda row: row["reward"])
    assert chosen.exit_code == 0 and f"(reward {top['reward']:.4g}, best of 8: brief" in chosen.stderr
    mute = ask(*asked, "--best-of", 3, "--reward", "silent")
    assert "no reward scored any of 3 answers" in mute.stderr
