"""A model that is measured: answers, which of two it finds likelier, and how well it predicts text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from align.core.data.encode import Encoder
from align.core.data.examples import Examples
from align.core.data.tokenize import tokenize_records
from align.core.evaluation.statistics import ratio
from align.core.generation.base import Generator, ModelHandle, Tokens
from align.core.inference.sampler import Completion, Sampler, handle_for, text_of, tokens_of
from align.core.models.loading import build_policy
from align.core.models.policy import Policy
from align.core.models.precompute import precompute
from align.core.plugin_system.registry import registry
from align.schemas.engine import MICRO_TOKENS
from align.schemas.errors import AlignError
from align.schemas.project import Measurement
from align.schemas.records import Content, Record
from align.schemas.run import Choice, Data, Model, Sampling, Source

# Which of two answers a model finds likelier.


def prefers_chosen(policy: Policy, examples: Examples, pad_id: int) -> NDArray[np.bool_]:
    """Whether each pair's chosen answer has the higher summed log-probability: sum log p(y_w|x) > sum log p(y_l|x).

    [N], over examples with a ``chosen`` and a ``rejected`` sequence. Ties count as not preferred.
    """
    scored = precompute(policy, examples, layout="padded", pad_id=pad_id, micro_tokens=8192)
    sums = [
        {s.role: float(s.ref_logp.sum()) for s in scored[i].sequences if s.ref_logp is not None}
        for i in range(len(scored))
    ]
    return np.array([pair["chosen"] > pair["rejected"] for pair in sums])


LONGEST = 2048
"""Tokens of a text or pair that are looked at, fewer where the model's context is shorter."""
HARMLESS = ["no-eos", "end-of-turn-untrained", "boundary-merge", "prompt-not-prefix", "turn-not-prefix"]
"""Findings of the template doctor that matter to a model that learns, and not to one that is only asked."""


@dataclass(frozen=True, slots=True)
class LocalProbeModel:
    """A model's directory or hub id, ready to be asked."""

    policy: Policy
    handle: ModelHandle
    _generator: Generator

    @classmethod
    def load(cls, path: str | Path) -> LocalProbeModel:
        """On the GPU where there is one."""
        model = Model(path=str(path))
        policy, _ = build_policy(model, "language", seed=0, dropout=False)
        policy = policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        handle = replace(handle_for(model), policy=policy)
        generator = registry.build("generator", Choice(type="local"))
        generator.open(handle)
        return cls(policy, handle, generator)

    def sample(
        self, records: Sequence[Record], sampling: Sampling, n: int = 1, seed: int = 0
    ) -> list[list[Completion]]:
        """``n`` answers to each record's prompt. Raises AlignError for prompts that leave no room for an answer."""
        return Sampler(self._generator, self.handle, sampling, n, seed).sample(records)

    def answers(self, prompts: Sequence[Content], max_new_tokens: int) -> list[str]:
        """What it says to each prompt, greedily."""
        asked = [Record("prompt", f"prompt {i}", prompt=prompt) for i, prompt in enumerate(prompts, 1)]
        groups = self.sample(asked, Sampling(max_completion_length=max_new_tokens, temperature=0))
        return [said.text for (said,) in groups]

    def room(self, record: Record) -> int:
        """Tokens that an answer to the record's prompt may have; not above 0 where it is too long."""
        return self.handle.context - len(tokens_of(record, Encoder(self.tokenizer)))

    def prefers(self, pairs: Sequence[Record]) -> list[bool]:
        """Whether it finds each pair's chosen answer likelier than the rejected one, token probabilities multiplied."""
        examples = self._examples(pairs, "dpo")
        return [bool(yes) for yes in prefers_chosen(self.policy, examples, self._pad)]

    def bits_per_byte(self, texts: Sequence[Record]) -> Measurement:
        """-sum log2 p(token) / sum bytes over records of kind text, each document one observation.

        Independent of the tokenizer, so models can be compared (2101.00027 section 3.1). Texts are cut at ``LONGEST``
        tokens. The first token of a text is given, unless the tokenizer begins texts with one of its own; the token
        that ends a text is not counted. Raises AlignError where nothing is left to predict.
        """
        examples = self._examples(texts, "pretrain")
        tokens = MICRO_TOKENS[next(self.policy.parameters()).device.type]
        scored = precompute(self.policy, examples, layout="padded", pad_id=self._pad, micro_tokens=tokens)
        special = list(self.tokenizer.all_special_ids)
        bits, sizes = list[float](), list[float]()
        for i in range(len(scored)):
            (text,) = scored[i].sequences
            assert text.ref_logp is not None
            spelt = ~np.isin(text.tokens[text.scored], special)
            size = self._bytes(text.tokens) - self._bytes(text.tokens[~text.scored])
            if size > 0 and spelt.any():
                bits.append(-float(text.ref_logp[spelt].sum(dtype=np.float64)) / math.log(2))
                sizes.append(size)
        if not sizes:
            raise AlignError("no text is longer than a token", "give longer texts", where=texts[0].source)
        return ratio(bits, sizes)

    def _bytes(self, tokens: Tokens) -> int:
        return len(text_of(self.tokenizer, tokens).encode())

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self.handle.tokenizer

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def _examples(self, records: Sequence[Record], algorithm: str) -> Any:
        learner: Any = registry.build("algorithm", Choice(type=algorithm))
        longest = min(LONGEST, self.handle.context)
        source = [Source(path="probe")]
        data = Data(train=source, max_length=longest, truncation_mode="keep_start", allow=HARMLESS, dataset_num_proc=1)
        return tokenize_records(records, self.tokenizer, learner, data).examples
