"""``align data check`` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from transformers import AutoTokenizer

from align.cli import main
from align.core.data.lint.finding import CATALOGUE
from align.core.data.rows import FAULTS
from align.core.plugin_system import registry
from tests.core.lint_rows import prose


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["data", "check", *map(str, arguments)])


def bad_file(directory: Path) -> Path:
    path = directory / "train.jsonl"
    rows = [
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        '{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        '{"messages": [',
        '{"messages": [{"role": "user", "content": "\x1b[31m"}]}'.replace("\x1b", "\\u001b"),
    ]
    path.write_text("\n".join(rows))
    return path


def test_names_every_bad_row(tmp_path: Path) -> None:
    path = bad_file(tmp_path)
    result = check(path)
    assert result.exit_code == 1
    assert result.output.splitlines()[:4] == [
        f"{path}: conversational text rows (format messages): 1 good, "
        "3 bad rows (1 unknown-role, 1 malformed-json, 1 message-order)",
        f"  {path}:2: messages[0].role: is 'usr'; did you mean 'user'? [unknown-role]",
        f"  {path}:3: is no JSON: Expecting value at column 15 [malformed-json]",
        f"  {path}:4: messages: has no assistant message [message-order]",
    ]


def test_clean(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    result = check(tmp_path / "a.jsonl", "--column", "prompt=question", "--column", "completion=answer")
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == (
        f"{tmp_path / 'a.jsonl'}: standard completion rows (format prompt-completion): 1 good, 0 bad rows"
    )


def test_json(tmp_path: Path) -> None:
    path = bad_file(tmp_path)
    result = check(path, "--json")
    assert result.exit_code == 1
    [found] = json.loads(result.output)
    assert (found["path"], found["rows"], found["bad"], found["error"]) == (str(path), 1, 3, "")
    assert [(row["line"], row["kind"]) for row in found["bad_rows"]] == [
        (2, "unknown-role"),
        (3, "malformed-json"),
        (4, "message-order"),
    ]


def test_one_file_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    path = bad_file(tmp_path)
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    result = check(tmp_path / "other.jsonl", tmp_path / "none.jsonl", path)
    assert result.exit_code == 1
    assert "columns 'a', which no format has" in result.output
    assert "is no file or directory" in result.output
    assert f"{path}:2" in result.output


def test_directory_says_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl", "README.md"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    result = check(tmp_path)
    assert result.exit_code == 0
    assert result.output.splitlines()[:2] == [
        f"{tmp_path}: standard text rows (format text): 1 good, 0 bad rows",
        "  not read: README.md, test.jsonl",
    ]


def test_kind_and_format(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "text": "c"}\n')
    assert "could be of format 'prompt-completion' or 'text'" in check(path).output
    assert "standard text rows" in check(path, "--kind", "text").output
    assert "standard completion rows" in check(path, "--format", "prompt-completion").output
    assert "no format is called 'txet'" in check(path, "--format", "txet").output
    assert check(path, "--column", "prompt").exit_code == 2


def test_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for kind in FAULTS:
        assert f"`{kind}`" in page
    for name in registry.names("format"):
        assert f"`{name}`" in page


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sound(path: Path, **columns: Any) -> Path:
    rows = ({"prompt": prose(2 * n), "completion": prose(2 * n + 1), "licence": "mit", **columns} for n in range(20))
    return written(path, *rows)


def test_what_is_doubtful_is_told_with_its_rows_and_its_fix(tmp_path: Path) -> None:
    path = sound(tmp_path / "a.jsonl")
    clean = check(path)
    assert (clean.exit_code, len(clean.output.splitlines())) == (0, 4), "the form and three lengths"
    path.write_text(path.read_text() + path.read_text().splitlines()[2].upper().replace("PROMPT", "prompt").replace(
        "COMPLETION", "completion").replace("LICENCE", "licence"))  # fmt: skip
    result = check(path)
    assert result.exit_code == 0
    assert result.output.splitlines()[-2:] == [
        "  warning: 1 of 21 rows (4.8%) say what an earlier row says, but for case, width and white space: row 21 "
        "[exact-duplicates]",
        "    leave them out: what is repeated is learned by heart first",
    ]


def test_exit_codes_follow_the_level_that_is_asked_for(tmp_path: Path) -> None:
    duplicate = sound(tmp_path / "a.jsonl")
    duplicate.write_text(duplicate.read_text() + duplicate.read_text().splitlines()[0])
    exam = written(tmp_path / "exam.jsonl", {"question": prose(0)})
    for words, code in (
        ([duplicate], 0),
        ([duplicate, "--fail-on", "warning"], 1),
        ([duplicate, "--fail-on", "warning", "--skip", "exact-duplicates"], 0),
        ([duplicate, "--against", exam], 1),
        ([duplicate, "--against", exam, "--fail-on", "never"], 0),
        ([bad_file(tmp_path), "--fail-on", "never"], 0),
        ([duplicate, "--against", tmp_path / "none.jsonl"], 2),
        ([duplicate, "--skip", "exact"], 2),
        ([duplicate, "--max-length", "9"], 2),
        ([duplicate, "--model", tmp_path / "none"], 2),
    ):
        assert check(*words).exit_code == code, words


def test_json_has_findings_lengths_and_languages(tmp_path: Path) -> None:
    exam = written(tmp_path / "exam.jsonl", {"question": prose(4)})
    [found] = json.loads(check(sound(tmp_path / "a.jsonl"), "--json", "--against", exam).output)
    [one] = found["findings"]
    assert (one["id"], one["level"], one["count"], one["of"], one["share"]) == (
        "eval-overlap-exact",
        "error",
        1,
        20,
        0.05,
    )
    assert one["rows"] == [f"{tmp_path / 'a.jsonl'}:3"]
    assert [(one["part"], one["rows"]) for one in found["lengths"] if one["unit"] == "words"] == [
        ("whole", 20), ("prompt", 20), ("answer", 20)]  # fmt: skip
    assert found["languages"] == {"en": 1.0}


def test_tokens_are_those_of_the_model(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = sound(tmp_path / "a.jsonl")
    [found] = json.loads(check(path, "--model", tiny_model_dir, "--max-length", "60", "--json").output)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    counts = [
        len(tokenizer.encode(f"{row['prompt']}\n\n{row['completion']}", add_special_tokens=False)) for row in rows
    ]
    [whole] = [one for one in found["lengths"] if (one["unit"], one["part"]) == ("tokens", "whole")]
    assert (whole["total"], whole["least"], whole["most"]) == (sum(counts), min(counts), max(counts))
    over = {one["id"]: one for one in found["findings"]}["over-max-length"]
    assert over["count"] == sum(count > 60 for count in counts) > 0


def test_a_reward_is_pointed_to(tmp_path: Path) -> None:
    path = written(tmp_path / "my prompts.jsonl", {"prompt": "What is 17 + 25?", "solution": "42"})
    assert check(path, "--reward", "math").output.splitlines()[-1] == f"next: align reward audit math '{path}'"


def test_terminal_and_page_show_what_data_say_and_obey_none_of_it(tmp_path: Path) -> None:
    evil = "</title><script>alert(1)</script>\x1b]0;title\x07\u202e"
    row = {"messages": [{"role": "user", "content": evil, evil: 1}, {"role": "assistant", "content": prose(1)}]}
    (tmp_path / "<b>x").mkdir()
    path = written(
        tmp_path / "<b>x" / "a.jsonl", *[row | {"source": evil}] * 30, row | {"source": "b"}, {"messages": evil}
    )
    page = tmp_path / "out.html"
    result = check(path, "--html", page)
    assert "\x1b" not in result.output and "\u202e" not in result.output and "unknown-message-key" in result.output
    said = page.read_text()
    assert "<script" not in said and "<b>x" not in said and "&lt;b&gt;x" in said and "\x1b" not in said
    assert said.count("<svg") == 3 and "one-source" in said and "default-src 'none'" in said


def test_every_finding_is_documented_with_its_level() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data_checks.md").read_text()
    listed = re.findall(r"^\| `([a-z-]+)` \| (error|warning|note) \|", page, re.MULTILINE)
    assert sorted(listed) == sorted((id, entry.level) for id, entry in CATALOGUE.items())
