"""What a model can do on held-out rows: right answers, pairs told apart, samples of what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from align.core.data.tokenise import tokenise
from align.core.evaluate.generate import generate
from align.core.evaluate.preference import prefers_chosen
from align.core.evaluate.statistics import wilson
from align.core.model.load import build_policy
from align.core.model.policy import Policy
from align.core.registry import registry
from align.core.report import Figure
from align.schemas.records import Content, Record
from align.schemas.run import Choice, Data, Model, Source


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is measured: its directory or hub id, ready to answer."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, path: str | Path) -> Subject:
        """On the GPU where there is one."""
        policy, tokenizer = build_policy(Model(path=str(path)), "language", seed=0, dropout=False)
        return cls(policy.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer)

    def answers(self, prompts: Sequence[Content], max_new_tokens: int) -> list[str]:
        """What it says to each prompt, greedily."""
        return generate(self.policy.unwrapped, self.tokenizer, prompts, max_new_tokens=max_new_tokens)

    def prefers(self, pairs: Sequence[Record]) -> list[bool]:
        """Whether it finds each pair's chosen answer likelier than the rejected one, token probabilities multiplied."""
        dpo: Any = registry.build("algorithm", Choice(type="dpo"))
        data = Data(train=[Source(path="held-out")], max_length=2048, truncation="keep_start", workers=1)
        examples = tokenise(pairs, self.tokenizer, dpo, data).examples
        return [bool(yes) for yes in prefers_chosen(self.policy, examples, int(self.tokenizer.pad_token_id or 0))]


def share(found: Sequence[bool]) -> Figure:
    """How many of them are true, and within which limits (Wilson, 95 %)."""
    low, high = wilson(sum(found), len(found))
    return Figure(sum(found) / len(found), low, high)
