"""Evals whose judge picks one label of a few, in double square brackets; its prompt is one template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from align import AlignError
from align.evals import Generate
from align.plugins.evals.judged.judging import JudgedEval, JudgePrompt, check_placeholders
from align.settings import Sampling

UNREADABLE = 0.5
"""The share of a right answer that stands for a verdict which cannot be read."""


class LabelledEval(JudgedEval):
    """Base class: one template with placeholders, from align or from a text file named as ``judge_prompts``."""

    template: ClassVar[JudgePrompt]
    """The default prompt."""
    needed: ClassVar[tuple[str, ...]]
    """Placeholders that a template must have."""

    def default_prompts(self) -> dict[str, JudgePrompt]:
        """Return align's own prompt."""
        return {self.name: self.template}

    def read_prompts(self, path: str) -> dict[str, JudgePrompt]:
        """Return the prompt of a text file, the whole of it the template."""
        try:
            prompt = JudgePrompt("", Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise AlignError(f"cannot be read: {error}", "name a text file with the template", where=path) from None
        check_placeholders(prompt, self.needed, path)
        return {self.name: prompt}

    def judge_settings(self) -> Sampling:
        """Return the judge's settings: the likeliest text, 512 tokens."""
        return Sampling(temperature=0, max_completion_length=512)

    def ask(self, texts: Mapping[str, str]) -> Generate:
        """Return the query for one label."""
        return self.ask_judge(self.prompts[self.name].messages(texts))


_LABEL = re.compile(r"\[\[\s*(\w+)\s*\]\]")


def read_label(text: str, labels: Iterable[str]) -> str | None:
    """Return the last label in double square brackets, whatever its case; None without one of ``labels`` there.

    The last one, since a judge that explains itself may quote others before it decides.
    """
    found = [label.lower() for label in _LABEL.findall(text)]
    return found[-1] if found and found[-1] in set(labels) else None
