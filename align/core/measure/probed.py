"""A model that is measured: answers, which of two it finds likelier, and how well it predicts text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from align.core.data.tokenise import tokenise
from align.core.evaluate.generate import generate
from align.core.evaluate.preference import prefers_chosen
from align.core.measure.interval import ratio
from align.core.model.load import build_policy
from align.core.model.policy import Policy
from align.core.model.precompute import precompute
from align.core.registry import registry
from align.schemas.project import Measurement
from align.schemas.records import Content, Record
from align.schemas.run import Choice, Data, Model, Source

MICRO_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Probed:
    """A model's directory or hub id, ready to be asked."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, path: str | Path) -> Probed:
        """On the GPU where there is one."""
        policy, tokenizer = build_policy(Model(path=str(path)), "language", seed=0, dropout=False)
        return cls(policy.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer)

    def answers(self, prompts: Sequence[Content], max_new_tokens: int) -> list[str]:
        """What it says to each prompt, greedily."""
        return generate(self.policy.unwrapped, self.tokenizer, prompts, max_new_tokens=max_new_tokens)

    def prefers(self, pairs: Sequence[Record]) -> list[bool]:
        """Whether it finds each pair's chosen answer likelier than the rejected one, token probabilities multiplied."""
        examples = self._examples(pairs, "dpo")
        return [bool(yes) for yes in prefers_chosen(self.policy, examples, self._pad)]

    def bits_per_byte(self, texts: Sequence[Record]) -> Measurement:
        """-sum log2 p(token) / sum bytes over records of kind text, each document one observation.

        Independent of the tokenizer, so models can be compared (2101.00027 section 3.1). Texts are cut at 2,048 tokens,
        and the bytes are those of the tokens that were predicted (the first token of a text is given).
        """
        examples = self._examples(texts, "pretrain")
        scored = precompute(self.policy, examples, layout="padded", pad_id=self._pad, micro_tokens=MICRO_TOKENS)
        bits, sizes = list[float](), list[float]()
        for i in range(len(scored)):
            for sequence in scored[i].sequences:
                assert sequence.ref_logp is not None
                tokens = sequence.tokens[sequence.scored]
                sizes.append(len(str(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)).encode()))
                bits.append(-float(sequence.ref_logp.sum(dtype=np.float64)) / math.log(2))
        return ratio(bits, sizes)

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def _examples(self, records: Sequence[Record], algorithm: str) -> Any:
        learner: Any = registry.build("algorithm", Choice(type=algorithm))
        data = Data(train=[Source(path="probe")], max_length=2048, truncation="keep_start", workers=1)
        return tokenise(records, self.tokenizer, learner, data).examples
