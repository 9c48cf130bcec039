"""Eval runs on disk, made by scripted models, for tests of what is done with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from align import Eval
from align.core.config.suite_file import LoadedEval
from align.core.inference.eval_runner import choose_items
from align.core.inference.eval_suite import EvalRun, OpenSuite, measure_suite
from align.evals import Episode, Generate, Item, Result
from align.schemas.evals import EvalChoice, Suite
from align.settings import Sampling
from align.testing import ScriptedModel


class Numbered(Eval):
    """Asks for the numbers of its items, which a model of known accuracy gets right."""

    name: ClassVar[str] = "numbered"

    class Config(Eval.Config):
        """Settings."""

        count: int = 400
        label: str = "a"
        cluster: int = 1

    config: Config

    def load(self) -> Sequence[Item]:
        """Make the items."""
        label, cluster = self.config.label, self.config.cluster
        return [Item(f"{label}{n}", str(n), cluster=f"{label}/{n // cluster}") for n in range(self.config.count)]

    def run(self, item: Item) -> Episode:
        """Ask for the number."""
        (reply,) = yield [Generate(item.id, Sampling(temperature=0))]
        return Result(float(reply.text == item.target), extracted=reply.text, valid=reply.text != "")


def share(text: str) -> float:
    """Return a number in [0, 1) that follows from a text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def accurate(rates: Mapping[str, float], *, noise: str = "", disagreement: float = 0.0) -> ScriptedModel:
    """Return a model that gets a share of each label's items right, the same ones for a higher share and more.

    noise, disagreement: share of items whose answer is drawn anew, by a seed of this name.
    """

    def answer(prompt: Any, _seed: int) -> str:
        label, number = str(prompt)[0], str(prompt)[1:]
        drawn = share(f"{noise}!{prompt}") if share(f"{noise}?{prompt}") < disagreement else share(str(prompt))
        return number if drawn < rates[label] else "wrong"

    return ScriptedModel(answer)


def store(
    directory: Path, model: ScriptedModel, labels: Mapping[str, Mapping[str, Any]], seed: int = 0, **common: Any
) -> EvalRun:
    """Measure a ``numbered`` eval for each label, and return the run; the eval is named by its label."""
    choices = [
        EvalChoice(type="numbered", name=label, settings={"label": label, **own}) for label, own in labels.items()
    ]
    evals = [LoadedEval(str(c.name), c, Numbered(Numbered.Config.model_validate(c.settings))) for c in choices]
    suite = Suite.model_validate({"seed": seed, "evals": [c.model_dump() for c in choices], **common})
    items = {each.name: choose_items(each.eval.load(), None) for each in evals}
    return measure_suite(OpenSuite(suite, evals, items), {"model": model}, directory, directory.name)
