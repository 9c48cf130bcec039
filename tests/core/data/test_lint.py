"""The data lints: each is found where it is and only there, in whatever order rows come, and nothing breaks it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.data.lint.duplicates import compare_splits
from align.core.data.lint.feedback import separating
from align.core.data.lint.finding import CATALOGUE, LintFinding
from align.core.data.lint.linter import Linter, LintOptions, lint, measure, scan_source
from align.core.data.lint.text_statistics import Lengths, is_low_quality
from align.core.data.mixture import load_records
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Data, Source
from tests.core.lint_rows import EXAMPLES, SOUND, completion, pair, pairs, prose, talk, text, unpaired
from tests.core.poison import POISON, good, line


def told(rows: list[Record], options: LintOptions | None = None) -> dict[str, LintFinding]:
    return {one.id: one for one in lint(rows, options)}


@pytest.mark.parametrize("id", [id for id in CATALOGUE if id != "held-out-overlap"])
def test_every_finding_is_found_and_counted(id: str) -> None:
    example = EXAMPLES[id]
    one = told(example.rows, example.options)[id]
    assert one.count == example.count
    loud = one.share >= CATALOGUE[id].loud_from
    assert (one.level, one.fix) == (CATALOGUE[id].level if loud else "note", CATALOGUE[id].fix)
    assert json.loads(json.dumps(one.dump()))["share"] == one.share
    assert id not in told(example.rows, replace(example.options, skip=[id]))


def test_faults_are_seen_amid_long_texts() -> None:
    clean = "Über die Wörter größerer Städte: naïve cafés, 今天天气很好, emoji 🙂 — “quoted” … and done. " * 20
    assert "mojibake" not in told([text(0, clean)])
    assert told([text(0, f"{clean}The cafÃ© is closed. {clean}")])["mojibake"].count == 1


def test_what_is_rare_is_only_a_note() -> None:
    rows = [completion(n) for n in range(100)]
    for refused, level in ((4, "note"), (6, "warning")):
        no = [completion(n, answer=f"I can't help with that. {prose(n)}") for n in range(refused)]
        assert told([*no, *rows[refused:]])["refusals"].level == level


@pytest.mark.parametrize(
    "rows",
    [
        SOUND,
        pairs(),
        [unpaired(n, n % 2 == 0) for n in range(120)],
        [text(n, prose(n, 80)) for n in range(30)],
        [text(n, talk(("user", prose(2 * n)), ("assistant", prose(2 * n + 1)))) for n in range(20)],
    ],
)
def test_nothing_is_found_in_sound_rows(rows: list[Record]) -> None:
    assert told(rows) == {}


def test_rows_are_named_in_order_the_first_hundred_of_them() -> None:
    doubled = [*SOUND, *(replace(row, source=f"train.jsonl:{n + 61}") for n, row in enumerate(SOUND * 2))]
    one = told(doubled)["exact-duplicates"]
    assert (one.count, one.of, len(one.rows), one.rows[:2]) == (120, 180, 100, ("train.jsonl:61", "train.jsonl:62"))
    assert one.places == "rows 61, 62, 63, 64, 65 ..."
    assert (
        told([replace(SOUND[0], source="a:1"), replace(SOUND[0], source="b:7")])["exact-duplicates"].places == "row 7"
    )


def test_a_name_that_is_no_lint_is_a_mistake() -> None:
    with pytest.raises(AlignError, match="did you mean 'secrets'"):
        LintOptions(skip=["secret"])


alphabet = st.sampled_from(["the", "sea", "is", "wide", "and", "a", "cold", "wind", "blows", "over", "every", "ship"])
sentence = st.lists(alphabet, min_size=1, max_size=12).map(" ".join)


@settings(max_examples=150)
@given(
    st.sampled_from(
        [
            completion,
            lambda n, one, other: pair(n, one, other, float(len(one) - len(other)), prompt="Which?"),
            lambda n, one, other: Record("prompt", f"a:{n}", prompt=one, columns={"solution": other}),
            lambda n, one, other: text(n, f"{one} {other}\n{one} {one} {one}"),
            lambda n, one, other: text(n, talk(("user", one), ("assistant", other), ("user", one))),
            lambda n, one, other: replace(unpaired(n, len(one) > 9), prompt=one, completion=other),
        ]
    ),
    st.lists(st.tuples(sentence, sentence), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_counts_do_not_depend_on_the_order_of_rows(
    make: Callable[[int, str, str], Record], said: list[tuple[str, str]], chance: random.Random
) -> None:
    rows = [make(n, one, other) for n, (one, other) in enumerate(said)]
    shuffled = chance.sample(rows, len(rows))
    first, second = told(rows), told(shuffled)
    assert {id: (one.count, one.of, one.level) for id, one in first.items()} == {
        id: (one.count, one.of, one.level) for id, one in second.items()
    }


@settings(max_examples=60)
@given(sentence, st.sampled_from([str.upper, str.title, str.swapcase]), st.sampled_from([" ", "\n", "\t ", "\u3000"]))
def test_case_width_and_white_space_make_no_other_row(said: str, recase: Any, space: str) -> None:
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in said)  # fullwidth forms
    for other in (recase(said), said.replace(" ", space) + space, wide):
        assert told([completion(0, said, "A."), completion(1, other, "a.")])["exact-duplicates"].count == 1
    assert "exact-duplicates" not in told([completion(0, said, "A."), completion(1, said + " more", "A.")])


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["text", "prompt", "completion", "preference", "unpaired", "talk"]),
            st.text(st.characters(exclude_categories=()), max_size=60),
            st.text(st.characters(exclude_categories=()), max_size=60),
            st.dictionaries(st.text(max_size=8), st.none() | st.text(max_size=9) | st.integers() | st.lists(st.none())),
        ),
        max_size=12,
    )
)
def test_no_text_breaks_it(rows: list[Any]) -> None:
    records = []
    for n, (kind, one, other, columns) in enumerate(rows):
        fields = {
            "text": {"text": one},
            "prompt": {"prompt": one},
            "completion": {"prompt": one, "completion": other},
            "preference": {"prompt": one, "chosen": one, "rejected": other, "margin": 0.0},
            "unpaired": {"prompt": one, "completion": other, "label": n % 2 == 0},
            "talk": {"text": talk(("user", one), ("assistant", other))},
        }[kind]
        records.append(Record("text" if kind == "talk" else kind, f"{one}:{n}", columns=columns, **fields))
    for found in lint(records, LintOptions(count=lambda texts: [len(t) for t in texts], max_length=10)):
        assert found.what and found.count >= 0 and json.dumps(found.dump())


def test_poisoned_rows_are_bad_rows_and_the_others_are_looked_at(tmp_path: Path) -> None:
    rows = [raw for name, raw, *_ in POISON if len(raw) < 10**6]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*(line(good(n)) for n in range(40)), *rows]))
    found = scan_source(Source(path=str(tmp_path / "a.jsonl")))
    ids = {one.id: one for one in found.findings}
    assert (found.error, found.rows >= 40, len(found.bad) > 60) == ("", True, True)
    assert "control-characters" in ids and "separable" in ids  # "good" against "bad"
    assert ids["separable"].what.endswith("length, more in the chosen one")


def test_a_row_as_long_as_may_be_is_looked_at() -> None:
    row = Record("text", "a:1", text=" ".join(f"w{n}" for n in range(400_000)))
    linter = Linter()
    linter.see(row)
    assert [one for one in linter.findings() if one.level == "error"] == []
    [words] = [one for one in linter.lengths if one.unit == "words"]
    assert words.total == 400_000


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=200))
def test_percentiles_are_lengths_that_so_many_do_not_exceed(values: list[int]) -> None:
    found = Lengths.of("whole", "words", values)
    ordered = sorted(values)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.95, found.p95), (0.99, found.p99)):
        assert value in values and sum(v <= value for v in values) >= share * len(values) - 1e-9
        assert sum(v < value for v in values) < share * len(values)
    assert (found.least, found.most, found.total) == (ordered[0], ordered[-1], sum(values))
    assert sum(count for *_, count in found.histogram) == sum(v > 0 for v in values)
    edges = [low for low, *_ in found.histogram]
    assert edges == sorted(set(edges)) and all(low < high for low, high, _ in found.histogram)


def test_one_feature_must_decide_nearly_all_pairs() -> None:
    chance = np.random.default_rng(0)
    drawn = [(prose(2 * n), prose(2 * n + 1)) for n in range(200)]
    assert separating(drawn) is None
    polite = [(f"{one} Thanks." if chance.random() < 0.97 else one, other) for one, other in drawn]
    feature, won = separating(polite)  # type: ignore[misc]
    assert feature == "the word 'thanks' in the chosen one only"
    assert won == sum("Thanks." in one for one, _ in polite)


@pytest.mark.parametrize(
    ("said", "is_poor"),
    [
        (prose(1, 80), False),
        ("今天天气很好，我们去公园散步吧。" * 10, False),
        ("| 1 | 2 | 3 |\n" * 20, True),
        ("a b c d e f g h " * 10, True),
        ("# one\n# two\n# three words\n" * 10, True),
        ("https://one.example/aaaaaaaaaaaaaaaaaaaaa " * 20, True),
    ],
)
def test_prose_is_told_from_what_is_none(said: str, is_poor: bool) -> None:
    assert is_low_quality(said) is is_poor


def test_files_are_measured_for_advice(tmp_path: Path) -> None:
    rows = [{"prompt": prose(2 * n), "completion": prose(2 * n + 1), "license": "mit"} for n in range(20)]
    rows[3]["completion"] += " Write to jane.doe@corp.org."
    path, exam = tmp_path / "a.jsonl", tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    exam.write_text(json.dumps({"question": rows[0]["prompt"], "answer": "x"}) + "\n")
    found = measure(str(path), against=[str(exam)])
    size = sum(len(row["prompt"]) + len(row["completion"]) + 2 for row in rows)
    known = {"rows": 20, "bytes": size, "pii": True, "overlaps_evals": True, "license": "mit"}
    assert (found.kind, found.facts, found.bad) == ("sft_pairs", known, 1)
    assert "overlaps_evals" not in measure(str(path)).facts and found.languages == {"en": 1.0}


def test_a_run_tells_what_it_learns_twice_and_what_is_held_out_in_vain(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": prose(2 * n), "completion": prose(2 * n + 1)}) for n in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join([*rows[:10], rows[3], rows[3].upper().lower()]))
    (tmp_path / "held.jsonl").write_text("\n".join([rows[11], rows[5]]))
    data = Data(
        train=[Source(path=str(tmp_path / "train.jsonl"))], validation=[Source(path=str(tmp_path / "held.jsonl"))]
    )
    found = load_records(data, ("completion",), tmp_path, compare=compare_splits).findings
    assert [(one.id, one.level, one.count, one.of, one.places) for one in found] == [
        ("exact-duplicates", "warning", 1, 12, "row 11"),
        ("held-out-overlap", "warning", 1, 2, "row 2"),
    ]
    assert json.loads((tmp_path / "data_report.json").read_text())["findings"] == json.loads(
        json.dumps([one.dump() for one in found])
    )


def test_pages_are_documents_to_look_up(tmp_path: Path) -> None:
    for name in ("a.md", "b.pdf", "c.png"):
        (tmp_path / name).write_bytes(b"12345")
    found = measure(str(tmp_path))
    assert (found.kind, found.facts) == ("documents", {"docs": 2, "bytes": 10})
    with pytest.raises(AlignError, match="no file or directory"):
        measure(str(tmp_path / "none.jsonl"))
