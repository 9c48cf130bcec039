"""Near duplicates and contamination: what is planted is found, what is disjoint is not, by the shares that are told."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.data.lint.duplicates import BAND, BANDS, THRESHOLD, group_near_duplicates
from align.core.data.lint.eval_overlap import Suite, read_suite
from align.core.data.lint.finding import BottomKSample, ThinnedDict
from align.core.data.lint.linter import LintOptions, lint
from align.core.data.lint.row_view import hashes, windows, words
from align.schemas.errors import AlignError
from tests.core.lint_rows import WORDS, completion, prose, talk, text

OTHER = [word[::-1] for word in WORDS if word[::-1] not in WORDS]
"""Words that no row of ``prose`` has."""


def found(rows: list[object], *suites: Suite) -> dict[str, int]:
    return {one.id: one.count for one in lint(rows, LintOptions(suites)) if "overlap" in one.id}  # type: ignore[arg-type]


def said(chance: random.Random, count: int, vocabulary: list[str] = WORDS) -> list[str]:
    return [chance.choice(vocabulary) for _ in range(count)]


@settings(max_examples=50)
@given(st.randoms(use_true_random=False), st.integers(8, 40), st.integers(0, 30), st.integers(0, 30))
def test_a_planted_prompt_is_found_wherever_it_stands(
    chance: random.Random, size: int, before: int, behind: int
) -> None:
    prompts = [" ".join(said(chance, size)) for _ in range(5)]
    hidden = " ".join([*said(chance, before, OTHER), *prompts[2].upper().split(" "), *said(chance, behind, OTHER)])
    rows = [completion(n, " ".join(said(chance, 20, OTHER)), "Yes.") for n in range(5)]
    assert found([*rows, completion(5, "What?", hidden)], Suite("exam", prompts)) == {"eval-overlap-ngram": 1}
    assert found(rows, Suite("exam", prompts)) == {}


@pytest.mark.parametrize(("copied", "contaminated"), [(7, False), (8, False), (10, False), (11, True), (20, True)])
def test_more_than_half_of_the_words_must_stand_there_in_runs(copied: int, contaminated: bool) -> None:
    prompt = WORDS[:20]  # all different
    row = completion(0, "What?", " ".join([*OTHER[:10], *prompt[:copied], *OTHER[10:20]]))
    assert found([row], Suite("exam", [" ".join(prompt)])) == ({"eval-overlap-ngram": 1} if contaminated else {})


def test_pieces_in_several_rows_do_not_add_up() -> None:
    prompt = WORDS[:40]
    rows = [completion(n, "What?", " ".join([*OTHER[:9], *prompt[10 * n : 10 * n + 10]])) for n in range(4)]
    assert found(rows, Suite("exam", [" ".join(prompt)])) == {}


def test_what_all_prompts_share_is_no_evidence() -> None:
    shared = " ".join(OTHER[:20])
    suite = Suite("exam", [f"{shared} {prose(n, 12)}" for n in range(40)])
    assert found([completion(0, f"{shared} {prose(999, 12)}", "Yes.")], suite) == {}
    assert found([completion(0, f"{shared} {prose(7, 12)} Or not?", "Yes.")], suite) == {"eval-overlap-ngram": 1}
    few = Suite("exam", suite.prompts[:10])
    assert found([completion(0, f"{shared} {prose(999, 12)}", "Yes.")], few) == {"eval-overlap-ngram": 1}


def test_short_prompts_are_found_where_they_are_the_whole_prompt() -> None:
    suite = Suite("sums", ["17 + 25 = ?"])
    asked = talk(("system", "You are kind."), ("user", " 17 +  25 = ?"), ("assistant", "42"))
    assert found([completion(0, "17 + 25 = ?", "42"), completion(1, "17 + 26 = ?", "43")], suite) == {
        "eval-overlap-exact": 1
    }
    assert found([text(0, asked)], suite) == {"eval-overlap-exact": 1}


def test_each_suite_is_told_with_how_much_of_it_was_seen() -> None:
    suites = [Suite("first", [prose(n, 12) for n in range(10)]), Suite("second", [prose(50 + n, 12) for n in range(4)])]
    rows = [completion(n, prose(n, 12), "Yes.") for n in (1, 1, 2, 51)]
    [one] = [one for one in lint(rows, LintOptions(suites)) if one.id == "eval-overlap-exact"]
    assert one.level == "error" and one.what.endswith("2 of 10 of first; 1 of 4 of second")
    assert one.detail["by_suite"] == {"first": "2 of 10", "second": "1 of 4"}


def test_suites_are_read_under_the_names_that_benchmarks_use(tmp_path: Path) -> None:
    for key in ("prompt", "question", "problem", "text"):
        path = tmp_path / f"{key}.jsonl"
        path.write_text(json.dumps({key: "Is  7 prime?", "answer": "yes", "choices": ["yes", "no"]}) + "\n")
        assert read_suite(str(path)) == Suite(path.name, ["is 7 prime?"])
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    with pytest.raises(AlignError, match=r"bad\.jsonl:2"):
        read_suite(str(tmp_path / "bad.jsonl"))
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(AlignError, match="which no format has"):
        read_suite(str(tmp_path / "other.jsonl"))


def jaccard(one: list[str], other: list[str]) -> float:
    runs = [{tuple(side[i : i + 3]) for i in range(len(side) - 2)} for side in (one, other)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


@settings(max_examples=40)
@given(st.randoms(use_true_random=False), st.integers(20, 60), st.integers(1, 40))
def test_near_duplicates_are_those_of_the_share_told(chance: random.Random, size: int, changed: int) -> None:
    one = said(chance, size)
    other = [*one[: max(0, size - changed)], *said(chance, min(size, changed), OTHER)]
    alike, near = jaccard(one, other), {f.id for f in lint([text(0, " ".join(one)), text(1, " ".join(other))])}
    if alike > THRESHOLD + 0.2:  # five standard errors of the estimate
        assert "near-duplicates" in near
    if alike < THRESHOLD - 0.2:
        assert "near-duplicates" not in near


def test_rows_that_hang_together_are_counted_but_for_one_of_them() -> None:
    rows = [text(n, f"{prose(1, 60)} Number {OTHER[n]}.") for n in range(12)] + [text(12, prose(2, 60))]
    rows += [text(20, f"{prose(1, 60)} number {OTHER[0]}.")]  # the same as the first: no near, but an exact one
    counts = {one.id: one.count for one in lint(rows)}
    assert (counts["near-duplicates"], counts["exact-duplicates"]) == (11, 1)


def test_groups_are_those_of_comparing_all_with_all() -> None:
    chance = np.random.default_rng(0)
    base = chance.integers(0, 2**32, (30, BANDS * BAND), dtype=np.uint32)
    signatures = np.repeat(base, 4, axis=0)
    for n in range(len(signatures)):  # rows of a group agree in 90 % of the places or more, so all pairs do in 80 %
        spoilt = chance.choice(BANDS * BAND, chance.integers(0, 12), replace=False)
        signatures[n, spoilt] = chance.integers(0, 2**32, len(spoilt), dtype=np.uint32)
    groups = group_near_duplicates(signatures)
    alike = (signatures[:, None] == signatures[None]).mean(axis=2) >= THRESHOLD
    assert ((groups[:, None] == groups[None]) == alike).all()


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 9))
def test_windows_are_equal_where_their_words_are(letters: list[str], n: int) -> None:
    runs = windows(hashes(letters), n).tolist()
    said = [tuple(letters[i : i + n]) for i in range(len(letters) - n + 1)]
    assert len(runs) == max(0, len(said))
    assert all((runs[i] == runs[j]) == (said[i] == said[j]) for i in range(len(said)) for j in range(i))


@given(st.lists(st.integers(0, 2**64 - 1)), st.integers(1, 9), st.randoms(use_true_random=False))
def test_samples_are_the_same_in_any_order(digests: list[int], most: int, chance: random.Random) -> None:
    shuffled = chance.sample(digests, len(digests))
    samples, thinned = (
        [BottomKSample[int](most), BottomKSample[int](most)],
        [ThinnedDict[int](most), ThinnedDict[int](most)],
    )
    for order, sample, thin in zip((digests, shuffled), samples, thinned, strict=True):
        for digest in order:
            sample.offer(digest, lambda digest=digest: digest)  # type: ignore[misc]
            if thin.wants(digest):
                thin.set(digest, digest)
    assert list(samples[0]) == list(samples[1]) == sorted(set(digests))[:most]
    assert thinned[0].held.keys() == thinned[1].held.keys() and thinned[0].limit == thinned[1].limit
    assert set(thinned[0].held) == {d for d in digests if d < thinned[0].limit} and len(thinned[0].held) <= most


def test_scripts_without_spaces_are_compared_by_the_character() -> None:
    assert words("今天 weather好") == ["今", "天", "weather", "好"]
    prompt = "请解释为什么天空在白天是蓝色的而在傍晚是红色的"
    assert found([completion(0, "问题", f"有人问{prompt}吗")], Suite("exam", [prompt])) == {"eval-overlap-ngram": 1}
