"""The labelled descriptions in ``data/advice``: labels are of the vocabulary, and quotes stand in their texts."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.advisor.merge_evidence import gather
from benchmarks import advice_cases
from benchmarks.advice_cases import Case, Read
from tests.advisor.deciding import advice, rows

DATA = Path(__file__).parents[1] / "data" / "advice"
FILES = sorted(DATA.glob("*/*.yaml"))
STAGES = {"continual_pretraining", "sft", "preference", "online_rl", "reward_model", "best_of_n"}
ANSWERS = {"prompting", "rag", "continual_pretraining", "post_training", "insufficient"}
WARNINGS = {
    "brittle_prompt",
    "contamination",
    "data_freshness",
    "forgetting",
    "judge_bias",
    "license_or_privacy",
    "memory_does_not_fit",
    "missing_reward",
    "needs_eval_gate",
    "needs_rag_eval",
    "no_baseline",
    "reward_hacking",
    "too_little_data",
}
STATUSES = {"asserted", "could", "planned", "absent", "hearsay", "past", "other"}


def cases(file: Path) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)["cases"]
    return loaded


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_labels_are_of_the_vocabulary_and_quotes_stand_in_their_texts(file: Path) -> None:
    for case in cases(file):
        name = case["id"]
        assert case["primary"] in ANSWERS, name
        assert set(case["accept"]) | set(case["combine"]) <= ANSWERS | STAGES, name
        assert set(case["stages"] or ()) <= STAGES, name
        assert set(case["warn"]) <= WARNINGS, name
        assert case["lang"] in ("en", "de", "es", "zh"), name
        for quote, _field, _value, status in case["reads"]:
            assert quote in case["text"], (name, quote)
            assert status in STATUSES, name


def test_there_are_enough_and_none_to_learn_from_is_measured_on() -> None:
    of_room = {room: list(chain(*map(cases, sorted((DATA / room).glob("*.yaml"))))) for room in ("learn", "unseen")}
    assert len(of_room["learn"]) >= 3000
    assert len(of_room["unseen"]) >= 300
    every = [*of_room["learn"], *of_room["unseen"]]
    assert len({case["id"] for case in every}) == len(every)
    texts = {room: {" ".join(case["text"].split()).casefold() for case in found} for room, found in of_room.items()}
    assert not texts["learn"] & texts["unseen"]


def case_of(*reads: Read, **labels: Any) -> Case:
    """Return a case whose text is its quotes, with labels over those of a case that asks for nothing."""
    plain: dict[str, Any] = dict.fromkeys(("file", "id", "lang", "style", "text", "primary"), "")
    plain |= dict.fromkeys(("adversarial", "accept", "combine", "algorithm", "warn", "must_not"), ())
    plain |= {"stages": None, "ask": None, "text": ". ".join(read.quote for read in reads), "reads": reads}
    return Case(**{**plain, **labels})


def test_labels_become_the_facts_that_they_state() -> None:
    case = case_of(
        Read("3e4 letters", "data.sft_pairs", "3e4", "asserted"),
        Read("thumbs from spring on", "data.unpaired_feedback", True, "planned"),
        Read("their 900 pairs", "data.preference_pairs", 900, "other"),
        Read("nothing scores them", "reward.kind", "none", "absent"),
        Read("look-up was tried", "requested", "rag", "past"),
        Read("the boss wants DPO", "requested", "dpo", "hearsay"),
        Read("no prompt yet", "behaviour.prompt_falls_short", False, "absent"),
    )
    facts = gather(advice_cases.evidence_of_labels(case))
    assert [(d.kind, d.size.rows) for d in facts.project.data or ()] == [("sft_pairs", 30_000)]
    assert [d.kind for d in facts.planned] == ["unpaired_feedback"]
    assert facts.project.reward.kind == "none" and facts.project.tried == ["rag"]
    assert facts.project.requested == "dpo" and facts.project.behaviour.prompt_falls_short is False
    assert all(case.text[slice(*e.span or ())] == e.quote for e in facts.evidence)


def test_an_advice_is_graded_part_by_part() -> None:
    """700 pairs and 900 comparisons for SQL: sft, then dpo."""
    data = [rows("sft_pairs", 700), rows("preference_pairs", 900)]
    given = advice(behaviour__target_capability="sql", data=data)
    right = case_of(
        primary="post_training",
        algorithm=("dpo",),
        stages=("sft", "preference"),
        combine=("preference",),
        warn=("needs_eval_gate",),
    )
    assert advice_cases.grade(right, given) == {
        "primary": True,
        "combine": True,
        "algorithm": True,
        "stages": True,
        "warn": (1, 1),
        "forbidden": [],
    }
    wrong = case_of(
        primary="rag",
        accept=("prompting",),
        algorithm=("grpo",),
        stages=("preference", "sft"),
        combine=("rag",),
        warn=("needs_rag_eval", "needs_eval_gate"),
        must_not=("preference",),
    )
    assert advice_cases.grade(wrong, given) == {
        "primary": False,
        "combine": False,
        "algorithm": False,
        "stages": False,
        "warn": (1, 2),
        "forbidden": ["dpo"],
    }
    counts = advice_cases.summary([advice_cases.grade(case, given) for case in (right, wrong)])
    assert counts["primary"] == (1, 2) and counts["warn"] == (2, 3) and counts["forbidden"] == 1
