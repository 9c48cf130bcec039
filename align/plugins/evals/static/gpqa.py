"""GPQA (Rein et al. 2023, 2311.12022): four choices, whose order follows from the question's id alone.

The file lists the right answer first. lm-eval shuffles with the process's global generator, so that two runs see two
exams; here the order is a hash's, the same on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from pydantic import Field, PositiveInt

from align.evals import Episode, Generate, Item, Result
from align.plugins.evals.static.lm_eval_task import LmEvalTask
from align.plugins.evals.static.static_eval import Published, StaticEval, choice_result
from align.settings import Sampling

LETTERS = "ABCD"
WRONG_ORDERS = tuple(permutations((1, 2, 3)))
"""The orders of the wrong choices."""


class GPQARow(Published):
    """A row of ``Idavidrein/gpqa``."""

    record: str = Field(alias="Record ID")
    question: str = Field(alias="Question")
    correct: str = Field(alias="Correct Answer")
    incorrect_1: str = Field(alias="Incorrect Answer 1")
    incorrect_2: str = Field(alias="Incorrect Answer 2")
    incorrect_3: str = Field(alias="Incorrect Answer 3")
    area: str = Field("", alias="High-level domain")


def order_of(record: str, repeat: int) -> tuple[int, ...]:
    """Return the order of the choices (0: the right one) of a question's n-th repeat; 24 repeats have each once.

    Four repeats put the right answer at each of the four places.
    """
    number = int.from_bytes(hashlib.sha256(record.encode()).digest())
    place = (number + repeat) % 4
    wrong = WRONG_ORDERS[(number // 4 + repeat // 4) % len(WRONG_ORDERS)]
    return (*wrong[:place], 0, *wrong[place:])


class GPQAQuestions(StaticEval):
    """The questions of GPQA with their choices in order."""

    domain = "knowledge"

    class Config(StaticEval.Config):
        """Settings of GPQA. data: its only split."""

        split: str = "train"
        """Split of a hub dataset or a directory; the published one has this alone."""
        permutations: PositiveInt = 1
        """Orders of the choices in which each question is asked; its repeats are one cluster."""

    config: Config

    def load(self) -> Sequence[Item]:
        """Read the questions, each once for every order of its choices."""
        rows = self.read(GPQARow)
        return [self._item(row, repeat) for row in rows for repeat in range(self.config.permutations)]

    def _item(self, row: GPQARow, repeat: int) -> Item:
        order = order_of(row.record, repeat)
        texts = [_cleaned(each) for each in (row.correct, row.incorrect_1, row.incorrect_2, row.incorrect_3)]
        choices = {f"choice{place}": texts[choice] for place, choice in enumerate(order, 1)}
        letter = LETTERS[order.index(0)]
        doc = {"Question": row.question, **choices, "answer": f"({letter})"}
        id = f"{row.record}-{repeat}" if repeat else row.record
        return Item(id, letter, row.record, doc, (row.area,) if row.area else ())


def _cleaned(text: str) -> str:
    """Return a choice as lm-eval writes it."""
    return text.strip().replace(" [title]", ". ").replace("  ", " ")


class GPQA(GPQAQuestions):
    """Share of questions answered with the right letter after reasoning (no examples).

    The prompt wants a last line ``Answer: X``, and the last such letter is read. lm-eval 0.4.13's own generative tasks
    of GPQA fail in their filter, which wants a column that their rows lack.
    """

    name = "gpqa"

    class Config(GPQAQuestions.Config):
        """Settings of GPQA with reasoning."""

        chat: bool = True
        """Send the prompt as one user message through the chat template; false: as plain text."""

    config: Config

    def run(self, item: Item) -> Episode:
        """Generate an answer and read its letter."""
        prompt = self.content(_with_answer_line(item.columns))
        protocol = Sampling(temperature=0, max_completion_length=2048)
        (reply,) = yield [Generate(prompt, self.config.sampled(protocol))]
        letter = answer_line(reply.text)
        if letter is None:
            return Result(0.0, valid=False, error="no letter found")
        return Result(float(letter == item.target), extracted=letter)


class GPQALikelihood(GPQAQuestions):
    """Share of questions whose right letter in brackets is the likeliest (lm-eval's ``gpqa_*_zeroshot``)."""

    name = "gpqa_likelihood"
    likelihoods = True

    def load(self) -> Sequence[Item]:
        """Read the questions."""
        items = super().load()
        self._task = LmEvalTask("gpqa/zeroshot/_gpqa_zeroshot_yaml", items[0].columns, process_docs=None)
        return items

    def run(self, item: Item) -> Episode:
        """Compare the likelihoods of the four letters."""
        prompt = self._task.prompt(item.columns)
        replies = yield self.likelihoods_of(prompt, self._task.continuations(item.columns, self.config.chat))
        return choice_result([reply.logp for reply in replies], LETTERS.index(item.target), LETTERS)


def _with_answer_line(doc: Mapping[str, Any]) -> str:
    choices = "\n".join(f"{letter}) {doc[f'choice{place}']}" for place, letter in enumerate(LETTERS, 1))
    wanted = "Think it through, then end with a line `Answer: X`, where X is the letter of the right choice."
    return f"{doc['Question'].strip()}\n\n{choices}\n\n{wanted}"


_ANSWER_LINE = re.compile(r"(?i:answer)\W{1,6}?(?:is\W{1,6}?)?(?:\\boxed\{)?(?:\\text\{)?\(?([A-D])\b")


def answer_line(text: str) -> str | None:
    """Return the letter after the last ``Answer:``, which may be bold, in brackets or in a formula; None without."""
    found = _ANSWER_LINE.findall(text)
    return found[-1] if found else None
