"""Briefs: forms with their lines, free words with their place, and anything at all without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.config import project_file
from align.core.config.project_file import of_text, read
from align.schemas.errors import AlignError
from align.schemas.project import Project


def nothing() -> bytes:
    raise AssertionError("standard input was read")


def at(path: Path, text: str) -> project_file.Brief:
    path.write_text(text, "utf-8")
    return read(str(path), nothing)


def test_a_form_with_its_lines(tmp_path: Path) -> None:
    text = "description: A bot.\nbehaviour:\n  rules_count: 27\ndata:\n  - kind: sft_pairs\n    size: {rows: 9}\n"
    brief = at(tmp_path / "brief.yaml", text)
    assert brief.project.behaviour.rules_count == 27
    assert brief.places["behaviour.rules_count"] == f"{tmp_path / 'brief.yaml'} line 3"
    assert brief.places["data[0].size.rows"].endswith("line 6")
    assert (brief.text, brief.source[brief.offset :][:6]) == ("A bot.", "A bot.")


def test_json_has_lines_too_and_its_own_escapes(tmp_path: Path) -> None:
    text = json.dumps({"description": "\U0001f600 a/b", "evals": {"target": 0.9}}, indent=1).replace("/", "\\/")
    brief = at(tmp_path / "brief.json", text)
    assert brief.text == "\U0001f600 a/b" and brief.project.evals.target == 0.9
    assert at(tmp_path / "tabs.json", '{\n\t"tried": []\n}').project.tried == []
    assert at(tmp_path / "lines.json", '{\n "requested": "dpo"\n}').places["requested"].endswith("lines.json line 2")


def test_free_words_and_front_matter(tmp_path: Path) -> None:
    words = "We want a bot.\nIt has 27 rules.\n"
    assert at(tmp_path / "brief.txt", words).text == words
    brief = at(tmp_path / "brief.md", f"---\nevals:\n  target: 0.9\n---\n{words}")
    assert (brief.text, brief.project.evals.target) == (words, 0.9)
    assert brief.offset is not None and brief.source[brief.offset :] == words
    assert brief.places["evals.target"].endswith("brief.md line 3")
    rule = at(tmp_path / "rule.md", "---\nnot closed, so a line across")
    assert rule.text.startswith("---\nnot") and rule.project == Project()


def test_standard_input_is_a_form_where_it_reads_as_one() -> None:
    assert read("-", lambda: b"requested: dpo").project.requested == "dpo"
    assert read("-", lambda: b'{"requested": "dpo"}').project.requested == "dpo"
    assert read("-", lambda: b"---\nrequested: dpo\n---\nWords.").text == "Words."
    prose = "Task: a bot for our shop; we have no data."
    assert read("-", prose.encode).text == prose


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "behavior: {}\n", "line 1: behavior\n    is not a key here\n    did you mean 'behaviour'?"),
        ("a.yaml", "\nrules_count: 3\n", "line 2: rules_count\n    is not a key here\n    write it as behaviour.r"),
        ("a.yaml", "tried: [prompt]\n", "is 'prompt'; must be 'prompting', 'few_shot'"),
        ("a.yaml", "evals: {target: .nan}\n", "must be a finite number"),
        ("a.yaml", "evals: {baseline: yes}\n", "is 'yes'; must be a number"),
        ("a.yaml", "behaviour: {rules_count: -1}\n", "line 1: behaviour.rules_count\n    is -1; must be greater than"),
        ("a.yaml", "- a list\n", "is not a mapping"),
        ("a.yaml", "output: o\nproject: {}\n", "is a run file\n    its project: is advised by `align train"),
        ("a.yaml", "a: [\n", "is not YAML"),
        ("a.json", '{"tried": [}', "line 1\n    is no JSON"),
        ("a.json", '{"tried": [], "tried": []}', "has the key 'tried' twice"),
        ("a.json", "[" * 100_000, "is no JSON for a form"),
        ("a.json", '{"evals": {"target": 1e999}}', "evals.target"),
        ("a.md", "---\nevals: {goal: 1}\n---\nWords", "line 2: evals.goal\n    is not a key here"),
        ("a.md", "---\ndescription: x\n---\nWords", "stands beside free words"),
        ("none.md", None, "cannot be read: No such file"),
        ("a\0b.md", None, "cannot be read"),
    ],
)
def test_mistakes_are_told_with_their_place(name: str, text: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(AlignError) as error:
        at(tmp_path / name, text) if text is not None else read(str(tmp_path / name), nothing)
    assert said in str(error.value)


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(AlignError) as error:
        at(tmp_path / "a.yaml", "tried: [x]\nevals: {target: a}\nmodell: {}\nevals: {}\n")
    assert len(error.value.problems) == 4


def test_what_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AlignError, match="a form has at most"):
        at(tmp_path / "a.yaml", "description: " + "x" * project_file.LARGEST_FORM)
    with pytest.raises(AlignError, match="standard input line 2\n    is not UTF-8"):
        read("-", lambda: b"a\n\xff")
    with pytest.raises(AlignError, match="most that is read"):
        read("-", lambda: b"x" * (project_file.LARGEST_TEXT + 1))


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_a_brief_or_an_error(raw: bytes) -> None:
    try:
        brief = read("-", lambda: raw)
    except AlignError:
        return
    assert brief.offset is None or brief.source[brief.offset :].startswith(brief.text)


def test_a_command_line_may_hold_anything() -> None:
    assert of_text("a \udcff b").text == "a ? b"


def test_values_laid_over_a_form_are_checked() -> None:
    project = Project.model_validate({"model": {"name": "a"}, "data": []})
    laid = project_file.merged(project, {("model", "name"): "b", ("evals", "target"): 0.5}, "--model")
    assert (laid.model.name, laid.evals.target, laid.data) == ("b", 0.5, [])
    with pytest.raises(AlignError, match=r"--hardware: hardware\.gpus"):
        project_file.merged(project, {("hardware", "gpus"): -1}, "--hardware")
