"""The base of static benchmarks: rows in a published format become items, choices are compared by their likelihoods."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from align import AlignError, Content, Eval, Problem
from align.evals import EvalSettings, LogLikelihood, Result, Row, load_rows, mean, sha
from align.plugins.evals.static.lm_eval_task import LmEvalTask


class Published(BaseModel):
    """A row in a published format. Other columns are left out, so that they are no part of an item."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class GroupedRow(Published):
    """A row of a benchmark whose examples are of the question's own group."""

    @property
    def group(self) -> str:
        """The subject or category."""
        raise NotImplementedError


PublishedRow = TypeVar("PublishedRow", bound=Published)


class StaticEval(Eval):
    """Base of static benchmarks."""

    class Config(EvalSettings, Eval.Config):
        """Settings of every static benchmark."""

        chat: bool = False
        """Send the prompt as one user message through the chat template; false: as plain text."""

    config: Config

    def read(self, kind: type[PublishedRow]) -> list[PublishedRow]:
        """Return all rows of ``data``. Raises AlignError with every row that is not in the published format."""
        return _checked(load_rows(self.config.source), kind)

    def content(self, prompt: str) -> Content:
        """Return a prompt as text or as one user message, as the settings say."""
        return [{"role": "user", "content": prompt}] if self.config.chat else prompt

    def likelihoods_of(self, prompt: str, continuations: Sequence[str]) -> list[LogLikelihood]:
        """Return the queries for the choices of one question."""
        context = self.content(prompt)
        return [LogLikelihood(context, each) for each in continuations]


class FewShotEval(StaticEval):
    """Base of benchmarks with solved examples in the prompt."""

    class Config(StaticEval.Config):
        """Settings of benchmarks with solved examples in the prompt."""

        num_fewshot: NonNegativeInt = 5
        """Examples in the prompt (lm-eval's name)."""
        shots: str | None = None
        """The file, directory or hub id that they come from; null: ``shots_split`` of ``data``."""
        shots_split: str = "dev"
        """The split of a hub dataset or a directory that they come from."""

    config: Config

    def read_shots(self, kind: type[PublishedRow]) -> list[PublishedRow]:
        """Return the rows that examples come from. Raises AlignError where none are named, and as ``read``."""
        config = self.config
        if not config.num_fewshot:
            return []
        path = config.shots or config.data
        if config.shots is None and Path(path).expanduser().is_file():
            what = f"needs {config.num_fewshot} examples for its prompts"
            raise AlignError(
                what, "shots: FILE with the examples' split, or num_fewshot: 0", where=f"{self.name}: shots"
            )
        is_directory = Path(path).expanduser().is_dir()
        # Of the files of a directory, those called dev are its split ``validation``.
        split = "validation" if is_directory and config.shots_split == "dev" else config.shots_split
        return _checked(load_rows(config.source.model_copy(update={"path": path, "split": split})), kind)

    def tasks_by_group(
        self, yaml: str, rows: Sequence[GroupedRow], kind: type[GroupedRow], **changes: Any
    ) -> dict[str, LmEvalTask]:
        """Return lm-eval's task of each group of rows, with the group's first examples.

        yaml: its file, with ``{}`` for the group's name. Raises AlignError where a group has too few examples.
        """
        wanted = self.config.num_fewshot
        shots = defaultdict(list)
        for shot in self.read_shots(kind):
            shots[shot.group].append(shot.model_dump())
        tasks: dict[str, LmEvalTask] = {}
        for row in rows:
            group = row.group
            if group in tasks:
                continue
            if len(shots[group]) < wanted:
                what = f"has {len(shots[group])} examples of {group!r}, and {wanted} are wanted"
                fix = "give the examples' split, or a smaller num_fewshot"
                raise AlignError(what, fix, where=f"{self.name}: shots")
            file = yaml.format(group.replace(" ", "_"))
            tasks[group] = LmEvalTask(file, row.model_dump(), shots[group][:wanted], **changes)
        return tasks

    def shorter(self, task: LmEvalTask, doc: Mapping[str, Any]) -> list[Content]:
        """Return the prompts with fewer and fewer examples, for models with a short context."""
        return [self.content(task.prompt(doc, count)) for count in reversed(range(self.config.num_fewshot))]


def _checked(rows: Iterable[tuple[str, Mapping[str, Any]]], kind: type[PublishedRow]) -> list[PublishedRow]:
    good, problems = [], []
    for where, row in rows:
        try:
            good.append(kind.model_validate(row))
        except ValidationError as error:
            problems.append(_problem(where, row, error))
    if problems:
        raise AlignError.gather(problems)
    return good


def _problem(where: str, row: Mapping[str, Any], error: ValidationError) -> Problem:
    found = error.errors()[0]
    column = ".".join(map(str, found["loc"])) or "row"
    if found["type"] == "missing":
        fix = f"its columns: {', '.join(row)}; rename one with columns: {{{column}: ITS_NAME}}"
        return Problem(where, f"has no column {column!r}", fix)
    return Problem(where, f"{column}: {found['msg']}")


def macro(rows: Sequence[Row]) -> float:
    """Return the mean over groups (the first tag of a row) of their mean scores."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.tags[0]].append(row.score)
    return mean(mean(scores) for scores in groups.values())


def content_ids(rows: Iterable[Published]) -> list[str]:
    """Return an id for each row that follows from its content; equal rows, which MMLU has, are counted."""
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        found = sha(row.model_dump(mode="json"))
        seen[found] += 1
        ids.append(found if seen[found] == 1 else f"{found}-{seen[found]}")
    return ids


def choice_result(logps: Sequence[float], target: int, names: Sequence[str]) -> Result:
    """Return 1 where the right choice alone is the likeliest. A tie is never right, and is marked as not valid.

    ``argmax`` takes the first of equals, so a broken model whose likelihoods are all equal would be right wherever the
    first choice is: on all of TruthfulQA MC1.
    """
    best = [place for place, logp in enumerate(logps) if logp == max(logps)]
    if len(best) > 1:
        return Result(0.0, valid=False, error=f"{len(best)} choices are equally likely")
    return Result(float(best[0] == target), extracted=names[best[0]])
