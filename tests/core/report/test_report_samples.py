"""Stored completions on the page: those of phases, and those of held-out prompts at their steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.core.report.facts import steps_per_phase
from align.core.report.read import read_run
from align.core.report.samples import before_and_after, samples_of
from align.core.training.sample_log import write_samples
from tests.core.reports import page_of, write_run

RUN, STAGE, STEP, PROMPT, COMPLETION, REWARD, ROWS = 0, 1, 2, 3, 4, 5, 11


def row(number: int, completion: str, reward: float | None) -> dict[str, Any]:
    return {
        "source": f"rows.jsonl:{number}",
        "group": number,
        "prompt": json.dumps([{"role": "user", "content": f"question {number}"}]),
        "completion": completion,
        "length": 3,
        "finish": "stop",
        "reward": reward,
        "parts": {},
        "outcomes": {},
        "gold": None,
    }


def held_out(stage: Path, step: int, rewards: list[float | None], held_out_set: int | None = None) -> None:
    (stage / "samples").mkdir(exist_ok=True)
    name = f"held-out-{step:06d}" if held_out_set is None else f"held-out-{held_out_set}-{step:06d}"
    rows = [row(i, f"answer {i} at {step}", reward) for i, reward in enumerate(rewards)]
    write_samples(stage / "samples" / f"{name}.parquet", rows)


def test_held_out_completions_of_a_stage_without_rollouts_stand_at_their_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    held_out(run / "sft", 0, [0.0, 1.0])
    held_out(run / "sft", 100, [1.0, None])
    (run / "sft" / "samples" / "notes.parquet").write_bytes(b"another program's")
    stored = samples_of([read_run(run)])
    assert stored.data["prompts"] == ["question 0", "question 1"]
    assert [[row[i] for i in (STAGE, STEP, PROMPT, COMPLETION, REWARD, ROWS)] for row in stored.data["rows"]] == [
        ["sft", 0, 0, "answer 0 at 0", 0.0, "held out"],
        ["sft", 0, 1, "answer 1 at 0", 1.0, "held out"],
        ["sft", 100, 0, "answer 0 at 100", 1.0, "held out"],
        ["sft", 100, 1, "answer 1 at 100", None, "held out"],
    ]
    assert stored.held_out and (stored.shown, stored.stored) == (4, 4)


def test_phases_and_numbered_held_out_sets_lie_side_by_side(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=("one",))
    file = run / "run.yaml"
    file.write_text(file.read_text() + "    rollout: {rewards: [{type: exact}], batches: 2}\n")
    held_out(run / "one", 1_000_000, [0.5], 2)  # seven digits stand after six
    held_out(run / "one", 4, [0.5], 2)
    held_out(run / "one", 4, [0.5], 1)
    for phase in (1, 2):
        write_samples(run / "one" / "samples" / f"phase-{phase:06d}.parquet", [row(0, "learned from", 1.0)])
    found = [(row[STEP], row[ROWS]) for row in samples_of([read_run(run)]).data["rows"]]
    sets = [(4, "held out, set 1"), (4, "held out, set 2"), (1_000_000, "held out, set 2")]
    assert found == [(1, ""), (3, ""), *sets]


def test_steps_of_a_phase_are_those_that_the_run_recorded(tmp_path: Path) -> None:
    """An algorithm's own number of passes over a phase may be in its class alone, which a report does not import."""
    run = write_run(tmp_path / "run", stages=("one",))
    file = run / "run.yaml"
    file.write_text(file.read_text() + "    rollout: {rewards: [{type: exact}], batches: 2}\n")
    assert steps_per_phase(read_run(run).stages[0]) == 2
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["one"]["steps_per_rollout"] = 8
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert steps_per_phase(read_run(run).stages[0]) == 8


def test_the_same_prompt_is_shown_before_and_after_best_change_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    held_out(run / "sft", 0, [0.5, 0.0, 1.0])
    held_out(run / "sft", 50, [0.0, 0.0, 0.0])
    held_out(run / "sft", 100, [0.5, 1.0, 0.0])
    shown = before_and_after(read_run(run))
    told = [[each.prompt, *((answer.stage, answer.text) for answer in each.answers)] for each in shown]
    assert told == [
        [
            f"question {i}",
            (f"sft · step 0 · reward {before}", f"answer {i} at 0"),
            (f"sft · step 100 · reward {after}", f"answer {i} at 100"),
        ]
        for i, before, after in ((1, "0", "1"), (0, "0.5", "0.5"), (2, "1", "0"))
    ]
    page = page_of(run)
    first = page.index("answer 1 at 100")
    assert page.index(">Before and after<") < first < page.index('<div id="browser">') and 'name="rows"' in page


def test_one_evaluation_is_no_before_and_after(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    held_out(run / "sft", 0, [0.5])
    assert before_and_after(read_run(run)) == [] and ">Before and after<" not in page_of(run)


def test_of_many_prompts_a_few_are_compared_from_the_best_change_to_the_worst(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    held_out(run / "sft", 0, [0.0] * 101)
    held_out(run / "sft", 9, [i / 100 for i in range(101)])
    prompts = [each.prompt for each in before_and_after(read_run(run))]
    assert prompts == [f"question {i}" for i in (100, 80, 60, 40, 20, 0)]


def test_of_too_many_completions_the_first_and_the_last_step_of_every_kind_stay(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=("one", "two"))
    for stage in ("one", "two"):
        for step in range(0, 100, 10):
            held_out(run / stage, step, [0.5] * 10)
    stored = samples_of([read_run(run)], most=60)
    steps = [(row[STAGE], row[STEP]) for row in stored.data["rows"]]
    assert list(dict.fromkeys(steps)) == [(stage, step) for stage in ("one", "two") for step in (0, 40, 90)]
    assert (stored.shown, stored.stored) == (60, 200)


def test_a_damaged_file_is_left_out_with_a_warning(tmp_path: Path, capsys: Any) -> None:
    run = write_run(tmp_path / "run")
    held_out(run / "sft", 0, [0.5])
    (run / "sft" / "samples" / "held-out-000009.parquet").write_bytes(b"PAR1 half")
    assert len(samples_of([read_run(run)]).data["rows"]) == 1
    said = capsys.readouterr().err
    assert "held-out-000009.parquet\n    cannot be read: " in said and "the report is made without it" in said
    assert "answer 0 at 0" in page_of(run)
