"""Advice made by hand, for what shows it: with everything in it, without facts, and with anybody's words."""

from __future__ import annotations

from typing import Any

from align.schemas.advice import Advice

BRIEF = """Reports of damage come in by letter, and each must become a record of our own form.
There are 27 mandatory clauses that all have to hold at once. We hold 14,000 letters with the
record that a clerk made of them. A consultant recommended PPO. Two GPUs with 80 GB are idle.
"""


def quote(fact: str, words: str, source: str = "description") -> dict[str, Any]:
    """Words of the brief with their place in it; of another source without."""
    start = BRIEF.find(words)
    span = (start, start + len(words)) if source == "description" and start >= 0 else None
    return {"fact": fact, "quote": words, "span": span, "source": source}


def full() -> Advice:
    """Return advice with every part filled."""
    fit = {"strategy": "lora-ddp", "verdict": "fits", "total_gb": 20.2, "short_gb": -51.8}
    rejected = {"strategy": "full-fsdp", "verdict": "does_not_fit", "total_gb": 74.0, "short_gb": 2.0}
    return Advice.model_validate(
        {
            "schema": "align.advice/1",
            "primary": "post_training",
            "confidence": "high",
            "probability": 0.964,
            "understood": [
                {
                    "topic": "behaviour",
                    "setting": "behaviour.rules_count=27",
                    "text": "27 rules must hold at once",
                    "quotes": [quote("behaviour.rules_count = 27", "27 mandatory clauses")],
                },
                {
                    "topic": "behaviour",
                    "setting": "tried.prompting=true",
                    "text": "prompting was tried",
                    "quotes": [quote("tried.prompting = true", "by letter")],
                    "guess": True,
                },
                {
                    "topic": "data",
                    "setting": "data.0.kind=sft_pairs",
                    "text": "labelled examples",
                    "quotes": [quote("data.sft_pairs.rows = 14000", "14,000 letters")],
                },
                {
                    "topic": "data",
                    "setting": "data.0.rows=14000",
                    "text": "14,000 rows",
                    "quotes": [quote("data.sft_pairs.rows = 14000", "14,000 letters")],
                },
                {
                    "topic": "hardware",
                    "setting": "hardware.gpus=2",
                    "text": "2 GPUs",
                    "quotes": [quote("hardware.gpus = 2", "gpus: 2", "brief.yaml line 7")],
                },
            ],
            "other_readings": [
                {
                    "primary": "rag",
                    "probability": 0.03,
                    "facts": [quote("knowledge.source = proprietary", "a record of our own form")],
                    "settings": ["knowledge.source=proprietary", "knowledge.changes=monthly"],
                    "question": "Do the facts that answers need change?",
                }
            ],
            "summary": "Train the model on your 14,000 rows (sft): more rules must hold at once than a prompt keeps.",
            "plan": [
                {"stage": "sft", "why": ["R-POST-1"]},
                {"stage": "dpo", "why": ["R-POST-5"], "optional": True, "needs": "at least 500 preference pairs"},
            ],
            "companions": ["rag"],
            "first_try": {
                "what": "the best prompt you can write and a schema validator, on 200 of the rows",
                "cost": "half a day, no GPU",
                "stop_if": "97 % of the records pass all rules",
            },
            "alternatives": [
                {
                    "option": "prompting",
                    "rank": 2,
                    "because": "it is cheaper, and 27 rules are more than it keeps",
                    "flips_if": "it is advised if 5 rules must hold at once",
                    "what_if": ["behaviour.rules_count=5"],
                },
                {
                    "option": "rag",
                    "rank": 3,
                    "because": "no facts change",
                    "flips_if": "it is advised if the facts change daily",
                },
            ],
            "reasons": [
                {
                    "rule": "R-POST-1",
                    "rubric": "POST",
                    "option": "post_training",
                    "weight": "hard",
                    "because": "27 rules must hold at the same time",
                    "quotes": [quote("behaviour.rules_count = 27", "27 mandatory clauses")],
                    "flips_if": "fewer than 20 rules had to hold at once",
                },
                {
                    "rule": "R-RAG-3",
                    "rubric": "RAG",
                    "option": "rag",
                    "weight": "soft",
                    "because": "answers come from a manual of your own",
                    "quotes": [quote("knowledge.source = proprietary", "source: proprietary", "brief.yaml line 4")],
                    "flips_if": "",
                },
            ],
            "assumptions": [
                {"fact": "tokens_per_row = 600", "why": "not stated", "effect": "time and cost by half or twice"}
            ],
            "missing": [
                {
                    "id": "evals",
                    "field": "evals.held_out_rows",
                    "question": "How many rows can be held out?",
                    "would_change": "the gate, not the method",
                }
            ],
            "data": [
                {
                    "need": "sft_pairs",
                    "unit": "rows",
                    "floor": 500,
                    "comfortable": 1000,
                    "given": 14000,
                    "verdict": "ok",
                    "lint": "align data check letters.jsonl",
                },
                {
                    "need": "eval_set",
                    "unit": "rows",
                    "floor": 50,
                    "comfortable": 500,
                    "given": None,
                    "verdict": "missing",
                },
            ],
            "algorithms": [
                {
                    "stage": "sft",
                    "name": "sft",
                    "tuning": "lora",
                    "start": {"optimizer.learning_rate": 2e-4, "model.adapter.r": 32, "train.num_train_epochs": 2},
                    "source": "2405.09673, TRL 1.16",
                }
            ],
            "hardware": {
                "given": "2 GPUs of 80 GB",
                "capacity_gb": 80.0,
                "chosen": {**fit, "per_gpu_gb": {"weights": 16.1, "adapter": 1.0, "activations": 2.1, "base": 1.0}},
                "rejected": [
                    {
                        **rejected,
                        "per_gpu_gb": {"weights": 16.0, "optimizer": 56.0, "activations": 2.0},
                        "knob": "gradient checkpointing",
                    }
                ],
                "asked": None,
            },
            "estimate": {
                "tokens": {"low": 17e6, "high": 25e6},
                "flops": {"low": 5.4e17, "high": 1.2e18},
                "gpu_hours": {"low": 1.5, "high": 4.0},
                "wall_hours": {"low": 0.8, "high": 2.0},
                "cost": {"low": 3.0, "high": 8.0},
                "currency": "EUR",
                "basis": "4 P D FLOPs at 25 to 38 % of the peak",
            },
            "warnings": [
                {
                    "id": "license_or_privacy",
                    "level": "error",
                    "text": "letters hold personal data, and nothing says that it may be trained on",
                    "rule": "R-WARN-9",
                    "quotes": [quote("data.sft_pairs.pii = true", "Reports of damage come in by letter")],
                },
                {
                    "id": "needs_eval_gate",
                    "level": "warning",
                    "text": "other abilities may be lost; measure them before and after",
                    "rule": "R-POST-1",
                },
                {"id": "no_baseline", "level": "note", "text": "nothing has been measured yet", "rule": "R-WARN-2"},
            ],
            "evals": {
                "target": ["all_rules_pass"],
                "guard": ["ifeval", "mmlu_pro"],
                "rule": "the target up by 2 standard errors, and no guard down by more than 1 point",
                "min_rows": 500,
                "detectable": 0.11,
            },
            "requested": {
                "requested": "ppo",
                "recommended": "sft",
                "agrees": False,
                "blocking": True,
                "because": "nothing can score an answer, and there are pairs to learn from",
            },
            "precedents": [
                {
                    "run": "runs/letters/sft",
                    "stage": "sft",
                    "model": "org/Small-7B",
                    "params_b": 7.0,
                    "tuning": "lora",
                    "data": "sft_pairs",
                    "rows": 5000,
                    "outcome": "regressed",
                    "verdict": "regressed",
                    "scores": [
                        {
                            "name": "all_rules_pass",
                            "role": "eval",
                            "verdict": "improved",
                            "before": 0.62,
                            "after": 0.81,
                            "difference": 0.19,
                            "low": 0.16,
                            "high": 0.22,
                            "items": 400,
                        }
                    ],
                    "hours": 0.5,
                    "gpu_hours": 1.0,
                    "hardware": "2 x H100",
                    "own": True,
                    "alike": ["the same method, sft", "5,000 rows, here 14,000 rows"],
                    "text": "5,000 rows reached 0.81 of all_rules_pass, from 0.62; the gate: regressed",
                    "changed": ["the confidence falls from high to medium"],
                    "next": "the gate of runs/letters/sft failed: mix in general rows",
                }
            ],
            "conflicts": [
                {
                    "fact": "data.sft_pairs.rows",
                    "taken": "letters.jsonl: 14,000",
                    "dropped": "brief.yaml line 9: 20,000",
                }
            ],
            "not_understood": ["a passage in a language that is not read: xx"],
            "provenance": {
                "tool": "0.1.0",
                "rules": "1" * 64,
                "thresholds": "2" * 64,
                "parser": "rules",
                "input": "3" * 64,
            },
        }
    )


def insufficient() -> Advice:
    """Return advice without any facts."""
    asked = [
        {
            "id": "goal",
            "field": "task.type",
            "question": "What must be otherwise afterwards?",
            "would_change": "everything",
        },
        {"id": "data", "field": "data", "question": "What data is there?", "would_change": "whether to train at all"},
    ]
    nothing: dict[str, Any] = dict.fromkeys(("first_try", "hardware", "estimate", "evals", "requested"))
    empty: dict[str, Any] = {key: [] for key in LISTS}
    return Advice.model_validate(
        {
            **empty,
            **nothing,
            "primary": "insufficient",
            "confidence": "low",
            "summary": "Too little is known to say.",
            "missing": asked,
            "provenance": full().provenance.model_dump(),
        }
    )


def everywhere(text: str) -> Advice:
    """The full advice with ``text`` in place of all that is in somebody's words."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: value[key] if key in FIXED else walk(value[key]) for key in value}
        if isinstance(value, list):
            return [walk(item) for item in value]
        return text if isinstance(value, str) else value

    return Advice.model_validate(walk(full().model_dump(mode="json", by_alias=True)))


FIXED = ("schema", "primary", "confidence", "topic", "weight", "unit", "verdict", "tuning", "level", "role")
LISTS = [name for name, value in full() if isinstance(value, list)]
