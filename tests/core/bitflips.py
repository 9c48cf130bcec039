"""Flip bits of every small file that a run writes and reads back; none may be believed, none may be a traceback.

    python -m tests.core.bitflips            every bit of every file, some minutes
    python -m tests.core.bitflips --sample 20   so many bits of each file

Each flip is read by what reads that file in a run, and told apart as

    refused     an AlignError that names the file
    recovered   a sentence that names the file, and the run goes on with what it knows from elsewhere
    harmless    what is read is what was written
    believed    something else is read, and nothing is said: a fault
    traceback   any other exception: a fault
    unnamed     an AlignError that does not say which file: a fault
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.core.data.examples import Store
from align.core.data.rows import BadRow, BadRows, read_report, write_report
from align.core.engine import checkpoint
from align.core.inference.json_client import RecordedClient
from align.core.inference.preferences import Journal
from align.core.models import precompute
from align.core.report.read import read_run
from align.core.training import row_stage
from align.core.training.fit import _verify_logs
from align.core.training.launch import train
from align.core.training.run_directory import RunDirectory
from align.plugins.loggers.csv import CSV
from align.plugins.rewards.ai_feedback.verdict_store import Cap, Ledger, Usage, VerdictStore
from align.schemas.errors import AlignError
from align.schemas.run import Run
from tests.core.runs import run_for, write_rows

FAULTS = ("believed", "traceback", "unnamed")


@dataclass(frozen=True)
class Target:
    """A file, and what reads it: ``read`` gives what is then believed. scratch: where reading may leave something."""

    path: Path
    read: Callable[[], Any]
    scratch: tuple[Path, ...] = ()


@dataclass
class Tally:
    """Outcomes of one file's flips, and the first of each fault."""

    counts: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)


def flips(target: Target, bits: list[int]) -> Tally:
    """Read the file once as it is and then with each of the bits flipped; it is left as it was."""
    whole = target.path.read_bytes()
    with restored(target):
        _, expected, _ = outcome(target.read)
    tally = Tally()
    for bit in bits:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        with restored(target):
            target.path.write_bytes(content)
            kind, found, said = outcome(target.read)
        if kind == "read":
            named = target.path.name in said
            kind = "recovered" if named else "harmless" if found == expected else "believed"
        elif kind == "refused" and not {target.path.name, target.path.parent.name} & set(re.split(r"[\s/:]", said)):
            kind = "unnamed"
        tally.counts[kind] += 1
        if kind in FAULTS:
            tally.shown.append(f"{target.path.name} bit {bit}: {kind}: {said or found!r}"[:400])
    return tally


def outcome(read: Callable[[], Any]) -> tuple[str, Any, str]:
    """``read``, ``refused`` or ``traceback``; what was read; what was said."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("align").addHandler(handler)
    try:
        with contextlib.redirect_stderr(said):
            return "read", read(), said.getvalue()
    except AlignError as error:
        return "refused", None, str(error)
    except Exception as error:
        return "traceback", None, f"{type(error).__name__}: {error}"
    finally:
        logging.getLogger("align").removeHandler(handler)


@contextlib.contextmanager
def restored(target: Target) -> Iterator[None]:
    """The target's directory and scratch as they were, whatever happens inside: other small files in them too."""
    held = {path: path.read_bytes() for path in (target.path, *target.scratch) if path.is_file()}
    beside = set(target.path.parent.iterdir())
    try:
        yield
    finally:
        for path in set(target.path.parent.iterdir()) - beside:
            path.unlink()
        for path, content in held.items():
            path.write_bytes(content)


def targets(root: Path, model: Path) -> Iterator[Target]:
    """Every kind of file that a run writes and reads back, of real small runs and caches below ``root``."""
    yield from of_a_run(root, model)
    yield from of_rows(root, model)
    yield from of_caches(root)


def of_a_run(root: Path, model: Path) -> Iterator[Target]:
    """An interrupted stage and a finished one of the same run."""
    rows = write_rows("sft", root / "rows.jsonl", 24)
    short: dict[str, Any] = {"train": {"max_steps": 4, "batch_size": 8}, "checkpoint": {"save_steps": 2}}
    stages = [
        {**run_for("sft", model, rows, root / "run", **short).stages[0].model_dump(), "name": name}
        for name in ("finished", "interrupted")
    ]
    run = Run.model_validate({"output": str(root / "run"), "stages": stages})
    train(run, progress=False)
    directory = RunDirectory(run)
    done, begun = directory.stage("finished"), directory.stage("interrupted")
    (begun.path / "done.json").unlink()
    manifest = directory.path / "manifest.json"

    def start() -> Any:
        """What a start takes from the two stages' files."""
        for stage in run.stages:
            directory.stage(stage.name).check(stage, directory.path, resume=True)
        directory.begin_stage(run.stages[1])
        return done.result(), begun.result(), begun.inputs()

    def hand_on() -> Any:
        done.check(run.stages[0], directory.path, resume=True)
        if (result := done.result()) is not None:
            done.verify_export()
        return result

    def newest() -> Any:
        path, damaged = checkpoint.latest_valid(begun.checkpoints)
        print("\n".join(damaged), file=os.sys.stderr)  # type: ignore[attr-defined]
        return path

    def log() -> Any:
        sound = checkpoint.facts(checkpoint.at(begun.checkpoints, 4))["logs"]
        _verify_logs([logger := CSV(CSV.Config()).open(begun.path, "x", 4)], sound)
        return logger.digest()  # type: ignore[attr-defined]

    def note() -> Any:
        directory.note("finished", more=1)
        return directory.noted("finished")

    def report() -> Any:
        facts = read_run(directory.path)
        return [
            facts.manifest,
            facts.advice,
            [(s.settings, s.noted, s.data, s.curves, s.finished) for s in facts.stages],
        ]

    yield Target(manifest, note)
    yield Target(manifest, report)
    yield Target(directory.path / "run.yaml", report)
    yield Target(done.path / "done.json", hand_on)
    yield Target(done.path / "done.json", report)
    yield Target(done.path / "metrics.csv", report)
    yield Target(done.path / "data_report.json", report)
    yield Target(done.path / "stage.json", start)
    yield Target(begun.path / "stage.json", start)
    yield Target(begun.path / "metrics.csv", log)
    yield Target(begun.path / "metrics.csv", report)
    yield Target(checkpoint.at(begun.checkpoints, 4) / checkpoint.MANIFEST, newest)
    yield Target(checkpoint.at(begun.checkpoints, 4) / checkpoint.MANIFEST, start, (begun.path / "stage.json",))


def of_rows(root: Path, model: Path) -> Iterator[Target]:
    """A stage that makes rows, killed after its phases."""
    rows = write_rows("best_of_n", root / "prompts.jsonl", 4)
    train(run := run_for("best_of_n", model, rows, root / "made", train={"batch_size": 16}), progress=False)
    place = RunDirectory(run).stage("only")
    phase = next(iter(sorted(place.phases.glob("*.json"))))
    key = json.loads(phase.read_bytes())["key"]
    yield Target(phase, lambda: row_stage._read(phase, key))


def of_caches(root: Path) -> Iterator[Target]:
    """Tokens, reference log-probabilities, verdicts, spendings, replies, labels, what was bad in a stream."""
    caches = root / "small"
    caches.mkdir()
    (tokens, *_) = sorted((root / "cache").glob("*.arrow"))
    tokens = Path(shutil.copy(tokens, caches))
    notes = Path(shutil.copy((root / "cache" / tokens.name).with_suffix(".json"), caches))

    def store() -> Any:
        found = Store.open(caches, tokens.stem)
        assert found is not None
        return [repr([found[0][i] for i in range(3)]), found[0].weights, found[0].content_hash, found[1]]

    yield Target(notes, store)
    yield Target(tokens, store)

    values = np.linspace(-3, 0, 9, dtype=np.float32)
    precompute._write(caches, "k" * 32, values)
    (kept,) = caches.glob("ref_logp-*")

    def reference() -> Any:
        found = precompute._read(caches, "k" * 32, 9)
        return values.tolist() if found is None else found.tolist()  # not found is computed again

    yield Target(kept, reference)

    verdicts, spent = caches / "verdicts.sqlite", caches / "spent.sqlite"
    memory, ledger = VerdictStore(verdicts), Ledger(spent, "judge", Cap(requests=9))
    memory.put("one", "a verdict")
    ledger.reserve(Usage(3, 100, 20))
    memory.close()
    ledger.close()

    def asked() -> Any:
        memory = VerdictStore(verdicts)
        try:
            return memory.get("one") or "a verdict"  # not found is asked again
        finally:
            memory.close()

    def costs() -> Any:
        ledger = Ledger(spent, "judge", Cap(requests=9))
        try:
            return ledger.spent
        finally:
            ledger.close()

    yield Target(verdicts, asked)
    yield Target(spent, costs)

    recorded = RecordedClient(lambda prompt, schema: "said", caches / "replies", "m")
    recorded("what?", {})
    (reply,) = (caches / "replies").iterdir()
    yield Target(reply, lambda: recorded("what?", {}))

    journal = Journal(caches / "labels.jsonl", "f")
    journal.add([{"chosen": "a", "row": i} for i in range(3)])
    journal.close()

    def labelled() -> Any:
        journal = Journal(caches / "labels.jsonl", "f")
        journal.close()
        return journal.lines != [{"chosen": "a", "row": i} for i in range(3)][: len(journal.lines)]

    yield Target(caches / "labels.jsonl.partial" / "journal.jsonl", labelled)

    bad = BadRows()
    bad.add(BadRow("a.jsonl", 3, "empty", "", "is empty"))
    stream = caches / "stream_report.json"
    write_report(stream, [{"path": "a.jsonl"}], bad, counted_on=True)
    yield Target(stream, lambda: read_report(stream).rows)


def run_all(root: Path, model: Path, sample: int | None, seed: int = 0) -> dict[str, Tally]:
    """The tally of every file; of ``sample`` bits of each, or of all."""
    dice = random.Random(seed)
    found: dict[str, Tally] = {}
    for target in targets(root, model):
        bits = list(range(8 * target.path.stat().st_size))
        chosen = bits if sample is None or len(bits) <= sample else sorted(dice.sample(bits, sample))
        name = f"{target.path.relative_to(root)} ({target.read.__name__})"
        found[name] = flips(target, chosen)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="bits of each file; all by default")
    options = parser.parse_args()
    from tests.tiny import save_tiny

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        os.environ["ALIGN_CACHE"] = str(here / "cache")
        with contextlib.redirect_stderr(io.StringIO()):
            results = run_all(here, save_tiny(here / "model"), options.sample)
    for name, tally in results.items():
        print(json.dumps({"file": name, **tally.counts}))
        for line in tally.shown[:5]:
            print("   ", line)
