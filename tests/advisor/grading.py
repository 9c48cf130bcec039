"""Graders of descriptions: numbers that were found, and the advice given, as `grading:` in the shared cases says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from align.advisor.project_facts import Evidence

NUMBERS = {
    "rules": ("behaviour.rules_count",),
    "sft_rows": ("data.sft_pairs.rows",),
    "pref_pairs": ("data.preference_pairs.rows",),
    "feedback_rows": ("data.unpaired_feedback.rows",),
    "prompts": ("data.prompts.rows",),
    "tokens": ("data.corpus.tokens",),
    "sft_tokens": ("data.sft_pairs.tokens",),
    "docs": ("data.documents.docs",),
    "params_b": ("model.params_b",),
    "gpus": ("hardware.gpus",),
    "gpu_gb": ("hardware.memory_gb",),
    "budget_usd": ("constraints.budget_usd",),
    "latency_s": ("constraints.latency_s",),
    "held_out_rows": ("evals.held_out_rows",),
    "baseline": ("evals.baseline",),
    "target": ("evals.target",),
}
NONE = {"sft_rows": "data.sft_pairs", "pref_pairs": "data.preference_pairs", "prompts": "data.prompts"}
"""Gold 0: that there is no such data may be said without a number."""


def cases(path: Path) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["cases"]
    return loaded


def numbers_found(evidence: Iterable[Evidence]) -> dict[str, tuple[set[float], set[float]]]:
    """Per gold key the values asserted: the sure ones, and all (guesses and sums of several bodies too)."""
    held = list(evidence)
    found = {}
    for key, fields in NUMBERS.items():
        told = [e for e in held if e.field in fields and e.status in ("asserted", "planned")]
        sure = {float(e.value) for e in told if not e.vague}
        every = {float(e.value) for e in told} | ({sum(sure)} if len(sure) > 1 else set())
        if key in NONE and any(e.field == NONE[key] and e.value is False and e.status == "asserted" for e in held):
            every.add(0.0)
        found[key] = sure, every
    return found


def grade_numbers(case: dict[str, Any], evidence: Iterable[Evidence], judged: set[str]) -> Counter[str]:
    """Counts of tp, fp, fn over a case; ``judged``: gold keys that the set labels at all. A second wrong value of a key
    counts as wrong once, and a value said in parts (56k and 12k for 68k) is right."""
    counts: Counter[str] = Counter()
    for key, (sure, every) in numbers_found(evidence).items():
        gold = case["facts"].get(key)
        if key not in judged:
            continue
        if gold is None:
            counts["fp"] += bool(sure)
            continue
        right = any(abs(value - gold) <= 0.01 * abs(gold) for value in every)
        parts = len(sure) > 1 and abs(sum(sure) - gold) <= 0.01 * gold
        wrong = any(abs(value - gold) > 0.01 * abs(gold) for value in sure) and not parts
        counts["tp"] += right
        counts["fn"] += not right
        counts["fp"] += wrong
    return counts


def judged_keys(all_cases: Iterable[dict[str, Any]]) -> set[str]:
    return {key for case in all_cases for key in case["facts"]}


def f1(counts: Counter[str]) -> float:
    return 2 * counts["tp"] / max(2 * counts["tp"] + counts["fp"] + counts["fn"], 1)


STAGES = {
    "preference": {"dpo", "kto"},
    "online_rl": {"grpo", "rloo", "ppo"},
}


def grade_advice(case: dict[str, Any], advice: Any) -> dict[str, Any]:
    """Return the parts of the expected outcome that the advice (an ``Advice``) misses; empty where it is right."""
    want = case["expected"]
    stages = [step.stage for step in advice.plan]
    missed: dict[str, Any] = {}
    if advice.primary not in {want["primary"], *want["accept"]}:
        missed["primary"] = (advice.primary, want["primary"])
    reached = {advice.primary, *advice.companions, *stages}
    reached |= (
        {"post_training"} if reached & {a.stage for a in advice.algorithms} - {"continual_pretraining"} else set()
    )
    if absent := [option for option in want["combine"] if option not in reached]:
        missed["combine"] = absent
    if want["algorithm"] is not None and not set(want["algorithm"]) & {*stages, *(a.name for a in advice.algorithms)}:
        missed["algorithm"] = (stages, want["algorithm"])
    if want["pipeline"] is not None and not _subsequence(want["pipeline"], stages):
        missed["pipeline"] = (stages, want["pipeline"])
    warned = {w.id for w in advice.warnings}
    if absent := [w for w in want["must_warn"] if w not in warned]:
        missed["must_warn"] = absent
    banned = set(want["must_not"])
    training = {"sft", "dpo", "kto", "reward_model", "grpo", "rloo", "ppo"}
    if bad := [o for o in (advice.primary, *stages) if o in banned or ("post_training" in banned and o in training)]:
        missed["must_not"] = bad
    if absent := [q for q in want["must_ask"] if q not in {m.id for m in advice.missing}]:
        missed["must_ask"] = absent
    return missed


def _subsequence(tokens: list[str], stages: list[str]) -> bool:
    rest = iter(stages)
    return all(any(stage == token or stage in STAGES.get(token, ()) for stage in rest) for token in tokens)
