"""The labelled descriptions in ``data/advice``: labels are of the vocabulary, and quotes stand in their texts."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

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
