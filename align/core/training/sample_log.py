"""The completions of a phase: kept in Parquet, and shown on the terminal.

Model text is hostile: it is stored as UTF-8 text and shown with everything that a terminal could obey made visible.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.core.online.phases import PromptGroup
from align.core.plugin_system.registry import registry
from align.core.rewards.scorer import Scored
from align.core.training.run_directory import StageDirectory
from align.core.util.atomic_files import whole_file
from align.core.util.profile import profiled
from align.schemas.errors import AlignError
from align.schemas.run import Rollout, Run
from align.schemas.text import number, visible

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),  # the prompt's row, as the data report names it
        pa.field("group", pa.int64(), nullable=False),  # answers to the same prompt share it
        pa.field("prompt", pa.string(), nullable=False),  # text, or a conversation's messages as JSON
        pa.field("completion", pa.string(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),  # tokens
        pa.field("finish", pa.string(), nullable=False),  # stop, length
        pa.field("reward", pa.float64()),  # null: every reward abstained
        pa.field("parts", pa.map_(pa.string(), pa.float64()), nullable=False),  # null: this one abstained
        pa.field("outcomes", pa.map_(pa.string(), pa.string()), nullable=False),
        pa.field("gold", pa.float64()),
        pa.field("sampled_logp", pa.list_(pa.float32())),  # of each token, under the generator
        pa.field("policy_version", pa.int64()),  # optimizer steps that made the weights which sampled it
    ]
)
"""The columns of a phase's file."""

_TEXTS = ("source", "prompt", "completion", "finish")


def write_samples(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``rows`` (keys: the columns of ``SCHEMA``, nullable ones may be missing) to ``path``, whole or not at all.

    ``prompt`` and ``completion`` may be messages; they are written as JSON. Raises ValueError for a row with other
    keys.
    """
    optional = {field.name for field in SCHEMA if field.nullable}
    for row in rows:
        if odd := (set(row) ^ set(SCHEMA.names)) - (optional - set(row)):
            raise ValueError(f"a row of samples has other keys than its columns: {', '.join(sorted(odd))}")
    table = pa.Table.from_pylist([_plain(row) for row in rows], schema=SCHEMA)
    with whole_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a phase's file of samples. Raises AlignError if it is damaged, or another file."""
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise AlignError(f"is no file of samples: {visible(str(error))}", where=str(path)) from error
    rows: list[dict[str, Any]] = table.to_pylist(maps_as_pydicts="strict")
    return rows


def show_samples(console: Console, rows: Sequence[Mapping[str, Any]], count: int) -> None:
    """Print ``count`` of a phase's answers in a table: the best, the worst, and between them evenly by rank."""
    picked = pick(rows, count)
    if not picked:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for title, ratio in (("reward", None), ("prompt", 2), ("answer", 3)):
        table.add_column(title, ratio=ratio, overflow="fold")
    for row in picked:
        table.add_row(_verdict(row), _shortened(row["prompt"], 60, 240), _shortened(row["completion"], 300, 300))
    console.print(table)


def pick(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Return ``count`` rows evenly by rank, best first: 1 is the middle one, 2 the best and the worst.

    Answers without a reward come last in rank.
    """
    ranked = sorted(rows, key=lambda row: (row.get("reward") is None, -(row.get("reward") or 0.0)))
    if count == 1 and ranked:
        return [ranked[(len(ranked) - 1) // 2]]
    ranks = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[rank] for rank in ranks]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    plain = dict(row)
    for name in _TEXTS:
        plain[name] = _text(row[name])
    for name in ("parts", "outcomes"):
        plain[name] = list(row[name].items())
    return plain


def _text(content: Any) -> str:
    """Text that UTF-8 can hold: a lone surrogate becomes its escape."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _verdict(row: Mapping[str, Any]) -> Text:
    """The reward, its parts, and the length with how it ended."""
    reward = row.get("reward")
    cell = Text(number(reward) if reward is not None else "none", style="bold")
    for name, part in row["parts"].items():
        cell.append(f"\n{visible(name)} {number(part) if part is not None else '–'}", style="dim")
    if (gold := row.get("gold")) is not None:
        cell.append(f"\ngold {number(gold)}", style="dim")
    return cell.append(f"\n{row['length']} tokens{', cut off' if row['finish'] == 'length' else ''}", style="dim")


def _shortened(content: Any, head: int, tail: int) -> Text:
    """The beginning and the end of a long text, without styles."""
    text = _text(content)
    if len(text) > head + tail:
        text = f"{text[:head]} […{len(text) - head - tail} characters…] {text[-tail:]}"
    return Text(visible(text).expandtabs(4))


class SampleLog:
    """Keeps every phase's completions, on one process: a ``PhaseObserver``.

    They go into a file of samples, a table on the terminal, and the notice to plugins.
    """

    def __init__(self, run: Run, place: StageDirectory, rollout: Rollout) -> None:
        self.run, self.place, self.rollout = run, place, rollout

    @profiled("logging")
    def __call__(self, phase: int, sampled: Sequence[PromptGroup], scored: Sequence[Scored]) -> None:
        """Write ``STAGE/samples/phase-000001.parquet``, show a table, and send the notice ``rollouts_scored``."""
        rows = sample_rows(sampled, scored)
        if self.rollout.samples == "parquet":
            write_samples(self.place.path / "samples" / f"phase-{phase + 1:06d}.parquet", rows)
        if self.rollout.num_completions_to_print:
            show_samples(Console(stderr=True), rows, self.rollout.num_completions_to_print)
        registry.notify("rollouts_scored", run=self.run, phase=phase + 1, rollouts=rows)


def sample_rows(sampled: Sequence[PromptGroup], scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Return completions with their scores as rows of ``write_samples``."""
    scores = iter(scored)
    rows = []
    for group in sampled:
        for completion in group.completions:
            score = next(scores)
            rows.append(
                {
                    "source": group.source,
                    "group": group.position,
                    "prompt": group.content,
                    "completion": completion.text,
                    "length": len(completion.tokens),
                    "finish": completion.finish,
                    "reward": score.reward,
                    "parts": score.parts,
                    "outcomes": score.outcomes,
                    "gold": None if completion.gold is None else completion.gold.value,
                    "sampled_logp": completion.logp.tolist(),
                    "policy_version": completion.version,
                }
            )
    return rows
