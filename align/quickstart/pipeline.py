"""The quickstart from end to end: write, train by the run file, measure every stage, draw the page."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from align.core.config import run_file as runfile
from align.core.data.mixture import load_records
from align.core.evaluation.statistics import wilson
from align.core.evaluation.word_f1 import f1
from align.core.inference.probe_models import LocalProbeModel
from align.core.report import Figure, MeasureRow, MeasureTable, PromptSample, StageCompletion, write_report
from align.core.report.read import read_run
from align.core.training.launch import train
from align.core.util.atomic_files import read_json, write_atomic
from align.core.util.progress import say, track, working
from align.quickstart import run_files, sums
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.results import StageResult
from align.schemas.run import Data, Run, Source

SAMPLES = 6
SPREAD = (0.9, 1.7)
"""Least and most time of a stage, in units of its steps' time: with evaluations, checkpoints and loading."""
START = "start"


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """The result of a quickstart."""

    run_file: Path
    table: MeasureTable
    page: Path
    model: Path
    """The last stage's export."""
    changes: Sequence[PromptSample] = ()
    """Held-out prompts of a user's own rows with their answers, the most changed first."""
    agreement: tuple[float, float] | None = None
    """F1 of the words of answers and expected answers, of the first model and of the last."""
    gate: Sequence[str] = ()
    """The gate's outcome, and a line for each of its domains and evals."""


def quickstart(
    output: Path, *, seed: int = 0, model: str | None = None, data: str | None = None, progress: bool = True
) -> QuickstartResult:
    """Train a small model on sums, or ``model`` on the rows of ``data``; gives figures and page.

    Run again in the same place it goes on where it stopped. Raises AlignError for what the user can fix.
    """
    if (model is None) != (data is None):
        missing, given = ("data", "model") if data is None else ("model", "data")
        raise AlignError(f"--{given} is given without --{missing}", f"give --{missing} too, or neither")
    if model is None or data is None:
        return _sums(output, seed, progress)
    return _own(output, seed, model, data, progress)


def _sums(place: Path, seed: int, progress: bool) -> QuickstartResult:
    file = run_files.write_sums(place, seed)
    with _one_thread():
        results = train(runfile.load(file), resume=True, progress=progress)
    models = {START: place / "model", **{result.name: result.export for result in results}}

    _, held_out = sums.split_sums()
    questions = [sums.say((sums.CARELESS, sums.CAREFUL)[i % 2], pair) for i, pair in enumerate(held_out)]
    pairs = load_records(
        Data(train=[Source(path=str(place / "data" / "preferences-held-out.jsonl"))], dataset_num_proc=1),
        ("preference",),
    ).train
    right, liked, completions = [], [], []
    for path in track(list(models.values()), "asking the models", shown=progress):
        subject = LocalProbeModel.load(path)
        answers = subject.answers(
            [[{"role": "user", "content": question}] for question in questions], max_new_tokens=24
        )
        marks = [sums.answer_in(answer) == a + b for answer, (a, b) in zip(answers, held_out, strict=True)]
        right.append(share(marks))
        liked.append(share(subject.prefers(pairs)))
        completions.append(list(zip(answers, marks, strict=True))[:SAMPLES])
    table = MeasureTable(
        tuple(models),
        (
            MeasureRow(
                "right answers",
                tuple(right),
                note=f"greedy answers to {len(questions)} sums that stand in no training file, in a chat's form",
            ),
            MeasureRow(
                "liked answer likelier",
                tuple(liked),
                note=f"{len(pairs)} held-out pairs of the same result, of which the one that says the sum is liked; "
                "half of the answers that sft learns from are of the other kind",
            ),
        ),
    )
    samples = []
    for i in range(SAMPLES):
        by_model = tuple(StageCompletion(name, *own[i]) for name, own in zip(models, completions, strict=True))
        samples.append(PromptSample(questions[i], by_model, sums.say(sums.SHOWN, held_out[i])))
    title = "A small model learns to add, to answer as people like, and to be right"
    result = _write_result(place, file, results, title, table, samples)
    return replace(result, gate=list(_gate_lines(results[-1].directory)))


def _gate_lines(stage: Path) -> Iterator[str]:
    """Yield the outcome of a stage's gate, and each unit's verdict with its difference in points of a hundred."""
    report = read_json(stage / "gate.json")["report"]
    yield f"{report['outcome']}: {stage.name} against the model that it began from"
    for unit in report["result"]["domains"]:
        found = unit["comparison"]
        low, high = 100 * found["low"], 100 * found["high"]
        points = f"{100 * found['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"
        yield f"{unit['name']}: {unit['verdict']}, {points}, may lose {100 * unit['margin']:g}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a model gains a fifth from a second thread, and where a core is busy waits for it most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _own(place: Path, seed: int, model: str, data: str, progress: bool) -> QuickstartResult:
    records = run_files.own_records(data)
    precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    file = run_files.write_own(place, model, records, seed, precision)
    run = runfile.load(file)
    if progress:
        for line in expected(run):
            say(line)
    results = train(run, resume=True, progress=progress)
    models = {START: model, **{result.name: str(result.export) for result in results}}

    prompts = [(record, run_files.prompt_of(record)) for record in records.validation]
    shown = [(record, prompt) for record, prompt in prompts if prompt is not None][:SAMPLES]
    pairs = records.validation if records.train[0].kind == "preference" else []
    liked, completions = [], []
    for path in track(list(models.values()), "asking the models", shown=progress):
        subject = LocalProbeModel.load(path)
        completions.append(subject.answers([prompt for _, prompt in shown], max_new_tokens=128))
        if pairs:
            liked.append(share(subject.prefers(pairs)))
        del subject
        gc.collect()  # one model at a time
    rows = (
        [MeasureRow("chosen likelier", tuple(liked), note=f"{len(pairs)} held-out pairs")] if pairs else _loss(results)
    )
    samples = []
    for i, (record, prompt) in enumerate(shown):
        by_model = tuple(StageCompletion(name, own[i]) for name, own in zip(models, completions, strict=True))
        samples.append(PromptSample(_words(prompt), by_model, _expected(record)))
    result = _write_result(
        place, file, results, f"{model} on {data}", MeasureTable(tuple(models), tuple(rows)), samples
    )
    return replace(result, changes=sorted(samples, key=_likeness), agreement=_agreement(samples))


def _loss(results: list[StageResult]) -> list[MeasureRow]:
    """The held-out loss of the only stage before training, and at the best checkpoint, which is exported."""
    (stage,) = read_run(results[0].directory.parent).stages
    (_, first), *later = stage.curves["val/loss"]
    best = min(value for _, value in later)
    return [MeasureRow("held-out loss", (Figure(first), Figure(best)), unit="number", better="lower")]


def _likeness(sample: PromptSample) -> float:
    """Return the F1 of the words of the first answer and the last."""
    return f1(sample.answers[0].text, sample.answers[-1].text)


def _agreement(samples: Sequence[PromptSample]) -> tuple[float, float] | None:
    """Return the mean F1 of answers and expected answers, of the first model and of the last; None without any."""
    wanted = [sample for sample in samples if sample.expected]
    if not wanted:
        return None

    def mean_f1(model: int) -> float:
        return sum(f1(sample.answers[model].text, sample.expected or "") for sample in wanted) / len(wanted)

    return mean_f1(0), mean_f1(-1)


def expected(run: Run) -> Iterator[str]:
    """Yield how long each unfinished stage will take, from a few real steps of it on this machine."""
    from align.core.estimation.calibrate import calibrate
    from align.core.estimation.resolved_stage import resolve_stage
    from align.core.util.detect_hardware import present

    low = high = 0.0
    for stage in run.stages:
        if (Path(run.output) / stage.name / "done.json").is_file():
            continue
        here = present(stage.devices)
        try:
            known = resolve_stage(run.stages, stage, here.accelerator, here.world_size)
            with working(f"{stage.name}: timing a few steps"):
                seconds = calibrate(known.stage, here).seconds
        except AlignError:  # training meets the same error, and reports it
            return
        steps = known.planned.batches.steps or 0
        least, most = SPREAD[0] * seconds * steps, SPREAD[1] * seconds * steps
        low, high = low + least, high + most
        yield (
            f"{stage.name}: {known.planned.batches.rows:,} rows, {stage.train.num_train_epochs:g} epochs in batches of "
            f"{stage.train.batch_size}: {steps:,} steps of about {seconds:.2g} s, {_minutes(least, most)}"
        )
    if high:
        yield f"in all {_minutes(low, high)} on this machine, and answers to {SAMPLES} prompts after it"


def _minutes(low: float, high: float) -> str:
    """Return a range of seconds in words: ``40 to 70 s``, ``3 to 5 min``, ``1.5 to 2.5 h``."""
    for unit, name in ((3600.0, "h"), (60.0, "min")):
        if high >= 1.5 * unit:
            return f"{low / unit:.2g} to {high / unit:.2g} {name}"
    return f"{low:.0f} to {max(1.0, high):.0f} s"


def _write_result(
    place: Path, file: Path, results: list[StageResult], title: str, table: MeasureTable, samples: list[PromptSample]
) -> QuickstartResult:
    page = place / "report.html"
    write_atomic(place / "figures.json", (json.dumps(asdict(table), indent=1) + "\n").encode())
    write_report(place / "run", page, title=title, table=table, samples=samples)
    return QuickstartResult(file, table, page, results[-1].export)


def _words(content: object) -> str:
    """A prompt or an answer as it is read."""
    if isinstance(content, str):
        return content
    assert isinstance(content, list)
    turns = [f"{message['role']}: {message.get('content') or ''}" for message in content]
    return turns[0].partition(": ")[2] if len(turns) == 1 else "\n".join(turns)


def _expected(record: Record) -> str:
    if record.kind == "text":
        assert isinstance(record.text, list)
        return _words(record.text[-1:])
    return _words(record.chosen if record.kind == "preference" else record.completion)


def share(found: Sequence[bool]) -> Figure:
    """Return the share of true ones, with its interval (Wilson, 95 %)."""
    low, high = wilson(sum(found), len(found))
    return Figure(sum(found) / len(found), low, high)
