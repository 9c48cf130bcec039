"""IFEval (Zhou et al. 2023, 2311.07911): instructions that a program can check, by lm-eval's 25 checkers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from pydantic import model_validator

from align import AlignError
from align.evals import Episode, Generate, Item, Result, Row
from align.plugins.evals.static.lm_eval_task import LmEvalTask, require
from align.plugins.evals.static.static_eval import Published, StaticEval

LEVELS = {
    "prompt_strict": "prompt_level_strict_acc",
    "inst_strict": "inst_level_strict_acc",
    "prompt_loose": "prompt_level_loose_acc",
    "inst_loose": "inst_level_loose_acc",
}
"""The four metrics, and their names in lm-eval."""


class IFEvalRow(Published):
    """A row of ``google/IFEval``."""

    key: int | str
    prompt: str
    instruction_id_list: list[str]
    kwargs: list[dict[str, Any] | None]

    @model_validator(mode="after")
    def _has_arguments_for_each(self) -> Self:
        if not self.instruction_id_list or len(self.kwargs) != len(self.instruction_id_list):
            raise ValueError(f"{len(self.kwargs)} kwargs for {len(self.instruction_id_list)} instructions")
        self.kwargs = [arguments or {} for arguments in self.kwargs]
        return self


class IFEval(StaticEval):
    """Share of prompts whose instructions are all followed, as they are (strict).

    Further metrics: ``inst_strict``, the share of all instructions that are followed; ``prompt_loose`` and
    ``inst_loose``, where the first or last line and the asterisks of a completion may be left out.
    """

    name = "ifeval"
    domain = "instruction"
    has_targets = False
    scored: ClassVar[str] = "prompt_strict"
    """The metric that is a row's score."""

    class Config(StaticEval.Config):
        """Settings of IFEval. data: its only split."""

        split: str = "train"
        """Split of a hub dataset or a directory; the published one has this alone."""
        chat: bool = True
        """Send the prompt as one user message through the chat template; false: as plain text."""

    config: Config

    def load(self) -> Sequence[Item]:
        """Read the prompts. Raises AlignError where a package or NLTK's sentence splitter is missing."""
        rows = self.read(IFEvalRow)
        _check_language_data()
        self._task = LmEvalTask("ifeval/ifeval.yaml", rows[0].model_dump())
        _check_instructions(rows)
        return [Item(str(row.key), columns=row.model_dump(), tags=_kinds(row)) for row in rows]

    def run(self, item: Item) -> Episode:
        """Generate a completion and check each instruction."""
        sampling = self.config.sampled(self._task.sampling())
        (reply,) = yield [Generate(self.content(item.columns["prompt"]), sampling)]
        found = self._task.score(item.columns, [reply.text])
        # One prompt's share of followed instructions, for both metrics of that level; ``aggregate`` weights it.
        metrics = {name: _share(found[theirs]) for name, theirs in LEVELS.items()}
        metrics["instructions"] = float(len(item.columns["instruction_id_list"]))
        error = "" if reply.text.strip() else "the completion is empty"
        return Result(metrics[self.scored], metrics, valid=not error, error=error)

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the four metrics; those of instructions are means over all instructions, not over prompts."""
        metrics = super().aggregate(rows)
        del metrics["instructions"]
        weights = [row.metrics["instructions"] for row in rows]
        for name in ("inst_strict", "inst_loose"):
            followed = sum(row.metrics[name] * weight for row, weight in zip(rows, weights, strict=True))
            metrics[name] = followed / sum(weights)
        return metrics


class IFEvalInstructions(IFEval):
    """Share of all instructions that are followed, as they are (strict); prompts are the clusters."""

    name = "ifeval_instructions"
    is_mean = False
    scored = "inst_strict"

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the mean over all instructions first."""
        metrics = super().aggregate(rows)
        return {**metrics, "score": metrics["inst_strict"]}


def _share(found: bool | list[bool]) -> float:
    """Return one verdict, or the share of right ones, as a number."""
    return sum(found) / len(found) if isinstance(found, list) else float(found)


def _kinds(row: IFEvalRow) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.instruction_id_list))


def _check_language_data() -> None:
    """Seed langdetect, and raise AlignError where NLTK's punkt_tab is missing.

    lm-eval would try to download it on import, print an error without a network, and fail in the middle of a run at
    the first instruction about sentences. langdetect draws at random: without a seed, one short text has two languages.
    """
    require("lm_eval", "langdetect", "immutabledict", "nltk")
    import nltk
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        fix = "python -m nltk.downloader punkt_tab, or set NLTK_DATA to a directory with tokenizers/punkt_tab"
        raise AlignError("needs NLTK's punkt_tab to count sentences", fix, where="ifeval") from None


def _check_instructions(rows: Sequence[IFEvalRow]) -> None:
    """Raise AlignError for an instruction that has no checker."""
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    for row in rows:
        if unknown := [each for each in row.instruction_id_list if each not in INSTRUCTION_DICT]:
            raise AlignError(f"item {row.key}: no checker for the instruction {unknown[0]!r}", where="ifeval")
