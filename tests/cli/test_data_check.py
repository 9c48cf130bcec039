"""``align data check`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from align.cli import main
from align.core import registry
from align.core.data.faults import FAULTS


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
