"""Files that the quickstart writes before it trains: a run file, and the model and data that the run file names."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from align.core.data.mixture import Records, load_records
from align.core.util.atomic_files import write_atomic
from align.quickstart import sums
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Data, Source

RUN_FILE = "quickstart.yaml"

PAGES, ANSWERS, PREFERENCES, PROMPTS = 10_000, 10_000, 1_500, 1_600
"""Rows to learn from."""
PAIRS = 300
"""Held-out pairs; the held-out questions are ``sums.HELD_OUT``."""

OWN_SHARE = 0.1
"""Share of a user's own rows that is held out."""
OWN_STEPS = 150
"""Optimizer steps after which an adapter's answers visibly differ, at the default learning rates."""
OWN_EPOCHS = {"sft": 8, "dpo": 3}
"""Most epochs over few rows: with more of them a model memorizes its rows. (The best checkpoint is exported.)"""
OWN_BATCHES = ((1_000, 8), (math.inf, 16))
"""Pairs (rows up to, batch size): on few rows, many noisy steps teach more than few exact ones."""
OWN_EVALUATIONS = 8
"""Evaluations on the held-out rows in one stage."""

SUMS_RUN = """\
# Written by align quickstart; try things: align train {file} output=runs/other stages.dpo.algorithm.beta=0.3
output: {output}
seed: {seed}
devices: {{count: 1}}
schedule: {{type: cosine, warmup_steps: 30, min_lr_rate: 0.1}}
stages:
  - name: base                       # from random weights to a model of the text
    model: {{path: {model}}}
    data: {{train: {pages}, validation: {pages_held_out}}}
    algorithm: pretrain
    optimizer: {{learning_rate: 5e-3, adam_beta2: 0.98}}
    train: {{batch_size: 16}}
    validation: {{eval_steps: 125}}
  - name: sft                        # from the text to answers
    model: {{path: "stage:base"}}
    data: {{train: {answers}, validation: {answers_held_out}}}
    algorithm: sft
    optimizer: {{learning_rate: 2e-3, adam_beta2: 0.98}}
    train: {{batch_size: 32}}
    validation: {{eval_steps: 50}}
  - name: dpo                        # from answers to those that are liked
    model: {{path: "stage:sft"}}
    data: {{train: {preferences}, validation: {preferences_held_out}}}
    algorithm: {{type: dpo, loss_type: {{sigmoid: 1, sft: 1}}}}  # the sft term keeps what was learned (2404.19733)
    optimizer: {{learning_rate: 1e-4, adam_beta2: 0.98}}
    schedule: {{warmup_steps: 0.1}}
    train: {{batch_size: 32}}
    validation: {{eval_steps: 10}}
  - name: grpo                       # from what is liked to what is right: eight tries at each prompt, checked
    model: {{path: "stage:dpo"}}
    data: {{train: {prompts}, validation: {prompts_held_out}}}
    algorithm: {{type: grpo, num_generations: 8}}
    rollout: {{rewards: [math], sampling: {{max_completion_length: 16}}}}
    optimizer: {{learning_rate: 4e-4, adam_beta2: 0.98}}
    schedule: {{type: linear, warmup_steps: 0}}
    train: {{batch_size: 256}}
    validation: {{eval_steps: 10}}
    gate: {{suite: {suite}, policy: {policy}, on_regression: keep}}
"""

SUMS_SUITE = """\
# Two evals on sums that stand in no training file: is the answer right, and does it say the sum as people like?
evals:
  - name: right
    type: rewards
    domain: math
    data: {questions}
    rewards: [math]
    sampling: {{max_completion_length: 24}}
  - name: shown
    type: rewards
    domain: chat
    data: {questions}
    rewards: [{{type: format, regex: '\\d+\\+\\d+=\\d+\\.'}}]
    sampling: {{max_completion_length: 24}}
"""

SUMS_POLICY = """\
# Learning to be right may cost no more than five points in a hundred of answering as people like.
domains:
  math: {margin: 0.05, evals: {right: 1}}
  chat: {margin: 0.05, evals: {shown: 1}}
"""

OWN_RUN = """\
# Written by align quickstart; change what you like and run it: align train {file} output=runs/other
output: {output}
seed: {seed}
model: {{adapter: {{type: lora}}}}
data: {{max_length: 2048}}
train: {{precision: {precision}}}
checkpoint: {{export: best}}
stages:
"""

OWN_STAGE = """\
  - name: {name}
    model: {{path: {model}}}
    data: {{train: {train}, validation: {held_out}}}
    algorithm: {name}
    schedule: {{warmup_steps: 0.1}}
    train: {{batch_size: {batch}, num_train_epochs: {epochs}}}  # {rows} rows: {steps} steps
    validation: {{eval_steps: {every}}}
"""


class Course(NamedTuple):
    """Batch size, epochs and steps of a stage on a user's rows."""

    batch: int
    epochs: int
    steps: int
    every: int
    """Steps between two evaluations."""


def course(rows: int, stage: str) -> Course:
    """Return as many epochs over ``rows`` rows as make ``OWN_STEPS`` steps: one at least, ``OWN_EPOCHS`` at most."""
    batch = next(batch for most, batch in OWN_BATCHES if rows <= most)
    steps_per_epoch = math.ceil(rows / batch)
    epochs = min(OWN_EPOCHS[stage], max(1, math.ceil(OWN_STEPS / steps_per_epoch)))
    steps = epochs * steps_per_epoch
    return Course(batch, epochs, steps, every=max(1, steps // OWN_EVALUATIONS))


def write_sums(place: Path, seed: int) -> Path:
    """A model that knows nothing, the sums that will teach it, and the run file."""
    paths = {
        f"{name}{suffix}": place / "data" / f"{name}{suffix.replace('_', '-')}.jsonl"
        for name in ("pages", "answers", "preferences", "prompts")
        for suffix in ("", "_held_out")
    }
    gate = {"suite": place / "suite.yaml", "policy": place / "gate.yaml", "questions": place / "data" / "eval.jsonl"}
    values = {"file": place / RUN_FILE, "output": place / "run", "model": place / "model", **paths, **gate}
    text = SUMS_RUN.format(seed=seed, **{name: _quoted(value) for name, value in values.items()})
    if _is_written(place, text):
        return place / RUN_FILE
    from align.quickstart.model import write_model

    train, held_out = sums.split_sums()
    pages = list(sums.pages(train, PAGES, random.Random(seed)))
    answers = list(sums.answers(train, ANSWERS, random.Random(seed + 1)))
    _write_rows(paths["pages"], pages)
    _write_rows(paths["answers"], answers)
    _write_rows(paths["preferences"], sums.preferences(train, PREFERENCES, random.Random(seed + 2)))
    _write_rows(paths["prompts"], sums.prompts(train, PROMPTS, random.Random(seed + 3)))
    _write_rows(paths["pages_held_out"], sums.pages(held_out, 200, random.Random(0)))
    _write_rows(paths["answers_held_out"], sums.answers(held_out, 500, random.Random(1)))
    _write_rows(paths["preferences_held_out"], sums.preferences(held_out, PAIRS, random.Random(2)))
    _write_rows(paths["prompts_held_out"], sums.prompts(held_out, 100, random.Random(3)))
    _write_rows(gate["questions"], sums.questions(held_out))
    write_atomic(gate["suite"], SUMS_SUITE.format(questions=_quoted(gate["questions"])).encode())
    write_atomic(gate["policy"], SUMS_POLICY.encode())
    texts = [message["content"] for row in answers[:500] for message in row["messages"]]
    write_model(place / "model", [row["text"] for row in pages[:500]] + texts, seed)
    write_atomic(place / RUN_FILE, text.encode())
    return place / RUN_FILE


def write_own(place: Path, model: str, records: Records, seed: int, precision: str) -> Path:
    """A run file for a user's own model and rows: sft, and dpo after it where the rows are preferences.

    The rows are written to ``place/data`` in the form in which each stage reads them; both hold the same ones out.
    """
    stages = ["sft", "dpo"] if records.train[0].kind == "preference" else ["sft"]
    parts = {"train": records.train, "held-out": records.validation}
    text = OWN_RUN.format(file=_quoted(place / RUN_FILE), output=_quoted(place / "run"), seed=seed, precision=precision)
    start = model
    for stage in stages:
        train, held_out = (_quoted(place / "data" / f"{stage}-{part}.jsonl") for part in parts)
        count = len(records.train)
        planned = course(count, stage)._asdict()
        text += OWN_STAGE.format(
            name=stage, model=_quoted(start), train=train, held_out=held_out, rows=f"{count:,}", **planned
        )
        start = f"stage:{stage}"
    if not _is_written(place, text):
        for stage in stages:
            for part, rows in parts.items():
                _write_rows(place / "data" / f"{stage}-{part}.jsonl", (_row(record, stage) for record in rows))
        write_atomic(place / RUN_FILE, text.encode())
    return place / RUN_FILE


def own_records(data: str) -> Records:
    """The rows of a user's file, a tenth of them held out; raises AlignError naming those that cannot be used."""
    source = Data(train=[Source(path=data)], validation_fraction=OWN_SHARE)
    return load_records(source, ("completion", "text", "preference"), progress=True)


def prompt_of(record: Record) -> Any:
    """Return a record's prompt, as a string or messages; None where the record is one text without a question."""
    if record.kind != "text":
        return record.prompt
    if isinstance(record.text, list) and record.text[-1]["role"] == "assistant":
        return record.text[:-1]
    return None


def _row(record: Record, stage: str) -> dict[str, Any]:
    """A record in the form in which a stage reads it."""
    if record.kind == "text":
        row: dict[str, Any] = {"messages" if record.conversational else "text": record.text}
    elif stage == "dpo":
        row = {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
    else:
        completion = record.chosen if record.kind == "preference" else record.completion
        row = {"prompt": record.prompt, "completion": completion}
    if record.tools:
        row["tools"] = record.tools
    if record.chat_template_kwargs:
        row["chat_template_kwargs"] = dict(record.chat_template_kwargs)
    return row


def _quoted(value: object) -> str:
    """A YAML string: whatever the path, it stays one value."""
    return json.dumps(str(value), ensure_ascii=False)


def _is_written(place: Path, text: str) -> bool:
    """Return whether this very quickstart has been written here before (its run file is written last).

    Raises AlignError where another one, or something else, is in the place.
    """
    file = place / RUN_FILE
    if file.is_file():
        if file.read_text(encoding="utf-8") != text:
            raise AlignError("holds a quickstart with other settings", "give another --output", where=str(place))
        return True
    if place.is_dir() and {path.name for path in place.iterdir()} - {"data", "model"}:
        raise AlignError("holds something else than a quickstart", "give another --output", where=str(place))
    return False


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
