"""The quickstart from end to end: write, train by the run file, measure every stage, draw the page."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from align.core import runfile
from align.core.data.sources import load_records
from align.core.disk import write_whole
from align.core.evaluate.statistics import wilson
from align.core.measure.probed import Probed
from align.core.report import Answer, Figure, Row, Sample, Table, write_report
from align.core.report.read import read_run
from align.core.train.launch import train
from align.quickstart import files, sums
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.results import StageResult
from align.schemas.run import Data, Source

SAMPLES = 6
START = "start"


@dataclass(frozen=True, slots=True)
class Story:
    """What came of it."""

    run_file: Path
    table: Table
    page: Path
    model: Path
    """The last stage's export."""


def quickstart(
    output: Path, *, seed: int = 0, model: str | None = None, data: str | None = None, progress: bool = True
) -> Story:
    """Train a small model on sums, or ``model`` on the rows of ``data``; gives figures and page.

    Run again in the same place it goes on where it stopped. Raises AlignError for what the user can mend.
    """
    if (model is None) != (data is None):
        missing, given = ("data", "model") if data is None else ("model", "data")
        raise AlignError(f"--{given} is given without --{missing}", f"give --{missing} too, or neither")
    if model is None or data is None:
        return _sums(output, seed, progress)
    return _own(output, seed, model, data, progress)


def _sums(place: Path, seed: int, progress: bool) -> Story:
    file = files.write_sums(place, seed)
    with _one_thread():
        results = train(runfile.load(file), resume=True, progress=progress)
    models = {START: place / "model", **{result.name: result.export for result in results}}

    _, held_out = sums.split_sums()
    asked = [sums.say((sums.CARELESS, sums.CAREFUL)[i % 2], pair) for i, pair in enumerate(held_out)]
    pairs = load_records(
        Data(train=[Source(path=str(place / "data" / "preferences-held-out.jsonl"))], workers=1), ("preference",)
    ).train
    right, liked, said = [], [], []
    for path in models.values():
        subject = Probed.load(path)
        answers = subject.answers([[{"role": "user", "content": question}] for question in asked], max_new_tokens=24)
        marks = [sums.answer_in(answer) == a + b for answer, (a, b) in zip(answers, held_out, strict=True)]
        right.append(share(marks))
        liked.append(share(subject.prefers(pairs)))
        said.append(list(zip(answers, marks, strict=True))[:SAMPLES])
    table = Table(
        tuple(models),
        (
            Row(
                "right answers",
                tuple(right),
                note=f"greedy answers to {len(asked)} sums that stand in no training file, asked as in a chat",
            ),
            Row(
                "liked answer likelier",
                tuple(liked),
                note=f"{len(pairs)} held-out pairs of the same result, of which the one that says the sum is liked; "
                "half of the answers that sft learns from are of the other kind",
            ),
        ),
    )
    samples = [
        Sample(
            asked[i],
            tuple(Answer(name, *told[i]) for name, told in zip(models, said, strict=True)),
            sums.say(sums.SHOWN, held_out[i]),
        )
        for i in range(SAMPLES)
    ]
    return _tell(
        place, file, results, "A small model learns to add, to answer as people like, and to be right", table, samples
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a model gains a fifth from a second thread, and where a core is busy waits for it most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _own(place: Path, seed: int, model: str, data: str, progress: bool) -> Story:
    records = files.own_records(data)
    precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    file = files.write_own(place, model, records, seed, precision)
    results = train(runfile.load(file), resume=True, progress=progress)
    models = {START: model, **{result.name: str(result.export) for result in results}}

    prompts = [(record, files.prompt_of(record)) for record in records.validation]
    asked = [(record, prompt) for record, prompt in prompts if prompt is not None][:SAMPLES]
    pairs = records.validation if records.train[0].kind == "preference" else []
    liked, said = [], []
    for path in models.values():
        subject = Probed.load(path)
        said.append(subject.answers([prompt for _, prompt in asked], max_new_tokens=128))
        if pairs:
            liked.append(share(subject.prefers(pairs)))
        del subject
        gc.collect()  # one model at a time
    rows = [Row("chosen likelier", tuple(liked), note=f"{len(pairs)} held-out pairs")] if pairs else _loss(results)
    samples = [
        Sample(
            _words(prompt),
            tuple(Answer(name, told[i]) for name, told in zip(models, said, strict=True)),
            _hoped_for(record),
        )
        for i, (record, prompt) in enumerate(asked)
    ]
    return _tell(place, file, results, f"{model} on {data}", Table(tuple(models), tuple(rows)), samples)


def _loss(results: list[StageResult]) -> list[Row]:
    """The only stage's held-out loss, before and after."""
    (stage,) = read_run(results[0].directory.parent).stages
    course = stage.curves["val/loss"]
    return [Row("held-out loss", (Figure(course[0][1]), Figure(course[-1][1])), unit="number", better="lower")]


def _tell(
    place: Path, file: Path, results: list[StageResult], title: str, table: Table, samples: list[Sample]
) -> Story:
    page = place / "report.html"
    write_whole(place / "figures.json", (json.dumps(asdict(table), indent=1) + "\n").encode())
    write_report(place / "run", page, title=title, table=table, samples=samples)
    return Story(file, table, page, results[-1].export)


def _words(content: object) -> str:
    """A prompt or an answer as it is read."""
    if isinstance(content, str):
        return content
    assert isinstance(content, list)
    turns = [f"{message['role']}: {message.get('content') or ''}" for message in content]
    return turns[0].partition(": ")[2] if len(turns) == 1 else "\n".join(turns)


def _hoped_for(record: Record) -> str:
    if record.kind == "text":
        assert isinstance(record.text, list)
        return _words(record.text[-1:])
    return _words(record.chosen if record.kind == "preference" else record.completion)


def share(found: Sequence[bool]) -> Figure:
    """How many of them are true, and within which limits (Wilson, 95 %)."""
    low, high = wilson(sum(found), len(found))
    return Figure(sum(found) / len(found), low, high)
