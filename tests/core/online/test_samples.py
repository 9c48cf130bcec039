"""A phase's answers in Parquet and on the terminal."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from align.core.training.sample_log import SCHEMA, pick, read_samples, show_samples, write_samples
from align.schemas.errors import AlignError


def row(**changes: Any) -> dict[str, Any]:
    """An answer like any other."""
    return {
        "source": "train.jsonl:3",
        "group": 0,
        "prompt": "2 + 2 =",
        "completion": " 4",
        "length": 2,
        "finish": "stop",
        "reward": 1.0,
        "parts": {"math": 1.0, "judge": None},
        "outcomes": {"math": "right", "judge": "abstained"},
        "gold": None,
        "sampled_logp": [-0.5, -0.25],
        "policy_version": 3,
        **changes,
    }


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """Abstaining is null, not 0; messages are JSON; arrays are lists; what may be missing is null."""
    messages = [{"role": "user", "content": "2 + 2 = ?"}]
    bare = {k: v for k, v in row().items() if k not in ("reward", "gold", "sampled_logp", "policy_version")}
    numbers = row(group=np.int64(7), reward=np.float32(0.5), sampled_logp=np.array([-0.5, -0.25], np.float32))
    path = tmp_path / "samples" / "phase-000001.parquet"
    write_samples(path, [row(), row(prompt=messages, reward=None, parts={}, outcomes={}), bare, numbers])
    plain, talk, short, array = read_samples(path)
    assert plain == row()
    assert talk["prompt"] == '[{"role": "user", "content": "2 + 2 = ?"}]'
    assert talk["reward"] is None and talk["parts"] == {} == talk["outcomes"]
    assert {short[name] for name in ("reward", "gold", "sampled_logp", "policy_version")} == {None}
    assert array == row(group=7, reward=0.5)
    assert pq.read_schema(path).equals(SCHEMA)
    assert os.listdir(path.parent) == [path.name]


def test_a_phase_without_answers_is_a_file_all_the_same(tmp_path: Path) -> None:
    """The schema does not depend on the rows."""
    write_samples(tmp_path / "a.parquet", [])
    assert read_samples(tmp_path / "a.parquet") == []
    assert pq.read_schema(tmp_path / "a.parquet").equals(SCHEMA)


@pytest.mark.parametrize("odd", [{"rewrad": 1.0}, {"group": "first"}])
def test_a_row_with_other_columns_leaves_the_file_as_it_was(tmp_path: Path, odd: dict[str, Any]) -> None:
    """Nothing is half-written."""
    path = tmp_path / "a.parquet"
    write_samples(path, [row()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"rewrad|int"):
        write_samples(path, [row(), row(**odd)])
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.parquet"]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    """Only nullable columns may be missing."""
    with pytest.raises(ValueError, match="completion"):
        write_samples(tmp_path / "a.parquet", [{k: v for k, v in row().items() if k != "completion"}])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    """Without a traceback."""
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(AlignError, match="no file of samples"):
        read_samples(tmp_path / "a.parquet")
    with pytest.raises(AlignError, match="no file of samples"):
        read_samples(tmp_path / "absent.parquet")


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_is_kept_and_shown(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Lone surrogates included, which UTF-8 cannot hold."""
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    write_samples(path, [row(completion=text)])
    expected = text.encode("utf-8", "backslashreplace").decode()
    assert read_samples(path)[0]["completion"] == expected
    shown([row(completion=text)], 1)


def shown(rows: list[dict[str, Any]], count: int) -> str:
    """What a terminal of 100 columns is sent."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    show_samples(console, rows, count)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


ATTACKS = {
    "clears the screen": "\x1b[2J\x1b[H",
    "sets the title": "\x1b]0;owned\x07",
    "copies to the clipboard": "\x1b]52;c;b3duZWQ=\x07",
    "a link": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "C1 control": "\x9b31mred",
    "overwrites the line": "wrong\rright",
    "steps back": "abc\x08\x08\x08xyz",
    "bidirectional override": "\u202etxet",
    "markup": "[bold red]x[/bold red][link=http://evil.example]y[/link]",
    "closes what is not open": "[/]",
    "emoji code": ":warning:",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("field", ["prompt", "completion", "parts"])
def test_hostile_text_does_nothing(attack: str, field: str) -> None:
    """Nothing is sent to the terminal but text and the table's own styles."""
    sent = shown([row(**{field: {attack: 1.0} if field == "parts" else attack})], 1)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", sent)  # colours and weights: the table's own
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", plain)
    assert "\x1b[31m" not in sent and "\x1b[1;31m" not in sent
    if field == "completion" and attack.isprintable():
        assert re.sub(r"\s", "", attack) in re.sub(r"\s", "", plain)


def test_long_texts_are_shown_with_both_ends() -> None:
    """Megabytes fill no screen."""
    sent = shown([row(completion="begin" + "x" * 3_000_000 + "the end")], 1)
    assert "begin" in sent and "the end" in sent and "2999412 characters" in sent
    assert len(sent) < 20_000


def test_picks_are_the_best_the_worst_and_between() -> None:
    """Evenly by rank; who has no reward comes last."""
    rows = [row(reward=r) for r in (3.0, None, 1.0, 5.0, 2.0, 4.0)]

    def rewards(count: int) -> list[float | None]:
        return [each["reward"] for each in pick(rows[:1] + rows[2:], count)]

    assert rewards(0) == []
    assert rewards(1) == [3.0]
    assert rewards(2) == [5.0, 1.0]
    assert rewards(3) == [5.0, 3.0, 1.0]
    assert rewards(9) == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert [each["reward"] for each in pick(rows, 6)][-1] is None
    assert pick([], 3) == [] and shown([], 3) == ""


def test_the_table_says_what_an_answer_got() -> None:
    """Reward, parts, gold, length."""
    sent = re.sub(r"\x1b\[[0-9;]*m", "", shown([row(gold=0.25, finish="length")], 1))
    for words in ("reward", "answer", "math 1", "judge –", "gold 0.25", "2 tokens, cut off"):
        assert words in sent
