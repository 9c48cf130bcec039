"""Messages hold what rows, files and servers say; they neither steer a terminal nor show other words than they hold."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner

from align.cli import main
from align.schemas.errors import AlignError, Problem
from align.schemas.text import stripped

BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
UNSEEN = (
    "\u00ad\u180e\u200b\u2060\u2061\u2062\u2063\u2064\ufeff\ufff9\ufffa\ufffb\u2028\u2029\U000e0001\U000e0041\U000e007f"
)
CONTROLS = "".join(chr(code) for code in [*range(32), *range(127, 160)] if chr(code) not in "\t\n\x9b")


@pytest.mark.parametrize("character", [*BIDIRECTIONAL, *UNSEEN, *CONTROLS], ids=lambda c: f"U+{ord(c):04X}")
def test_no_message_holds_it(character: str) -> None:
    """Wherever it stands in a problem, alone or gathered with others."""
    problem = Problem(f"a{character}b", f"c{character}{character}d", f"{character}e")
    assert str(problem) == "ab\n    cd\n    e"
    assert str(AlignError(f"c{character}d", f"e{character}", where=f"{character}ab")) == "ab\n    cd\n    e"
    assert str(AlignError.gather([problem, problem])) == "ab\n    cd\n    e\nab\n    cd\n    e"


@pytest.mark.parametrize(
    ("escape", "left"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x9b31mred", "red"),
        ("\x1b[?25l", ""),
        ("\x1b[38:2::255:0:0mred", "red"),
        ("\x1b]0;title\x07name", "]0;titlename"),  # what stands in it is not hidden
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "]8;;http://a\\link]8;;\\"),
        ("\x1bc", "c"),
        ("a\rb", "ab"),
        ("a\x08b", "ab"),
    ],
)
def test_no_message_steers_the_terminal(escape: str, left: str) -> None:
    assert stripped(escape) == left == str(Problem("", escape)) == str(AlignError(escape))


@pytest.mark.parametrize(
    "text",
    [
        "نص عربي",
        "טקסט",
        "می\u200cخواهم",  # Persian: a joiner inside the word
        "👩\u200d👩\u200d👧 ❤\ufe0f",
        "क्\u200dष",
        "日本語 e\u0301 ﬁ",
        "tab\tand\nline",
        "100 % [red]\\x1b",
    ],
)
def test_what_people_write_stays(text: str) -> None:
    assert stripped(text) == text == str(Problem("", text))


def test_nothing_that_unicode_calls_a_format_character_stays_but_the_joiners() -> None:
    """Category Cf over the planes in which text is written, with the marks that scripts need left alone."""
    needed = {0x200C, 0x200D, *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2}  # joiners; Arabic number signs
    formats = [code for code in range(0x10000) if unicodedata.category(chr(code)) == "Cf" and code not in needed]
    assert formats and not [hex(code) for code in formats if stripped(chr(code))]


@pytest.mark.parametrize("hostile", ["\u202e", "\x1b[8m", "\u2066", "\x85", "\U000e0041"])
def test_through_the_commands(hostile: str, tmp_path: Path) -> None:
    """What a run file and a row hold comes back in the message without it."""
    run = tmp_path / "run.yaml"
    run.write_text(
        f"output: o\nmodel: {{path: m}}\nalgorithm: {json.dumps(hostile + 'dpoo')}\ndata: {{train: [r.jsonl]}}\n"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"completion": 5, hostile: hostile}) + "\n")
    bare = hostile[-1] if hostile[0] != "\x1b" else "\x1b"
    for arguments in (
        ("train", run),
        ("train", tmp_path / f"no{hostile}.yaml"),
        ("reward", "score", "repetition", rows),
        ("reward", "score", hostile + "nothing", rows),
        ("data", "check", tmp_path / f"no{hostile}.jsonl"),
        ("advise", tmp_path / f"no{hostile}.yaml"),
        ("estimate", run, f"model.path={hostile}x"),
    ):
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exit_code in (1, 2) and done.output, arguments
        assert bare not in done.output, (arguments, done.output)
