"""A model under measurement: it samples completions, compares two of them by likelihood, and predicts text."""

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

from align.core.data.datasets import tokenize_records
from align.core.data.encode import Encoder
from align.core.data.examples import Examples
from align.core.evaluation.statistics import ratio
from align.core.generation.generator_base import Generator, ModelHandle, Tokens
from align.core.inference.sampler import Completion, Sampler, handle_for, text_of, tokens_of
from align.core.models.load_and_export import build_policy
from align.core.models.policy import Policy
from align.core.models.precompute import precompute
from align.core.plugin_system.registry import registry
from align.schemas.engine import MICRO_TOKENS
from align.schemas.errors import AlignError
from align.schemas.project import Measurement
from align.schemas.records import Content, Record
from align.schemas.run import Choice, Data, Model, Sampling, Source

# --- likelihood of pairs ---------------------------------------------------------------------------------------------


def prefers_chosen(policy: Policy, examples: Examples, pad_id: int) -> NDArray[np.bool_]:
    """Return [N] booleans: sum log p(y_w|x) > sum log p(y_l|x), of the chosen and the rejected completion of each pair.

    examples: each with a ``chosen`` and a ``rejected`` sequence. Ties count as False.
    """
    scored = precompute(policy, examples, layout="padded", pad_id=pad_id, micro_tokens=8192)
    preferred = []
    for i in range(len(scored)):
        sums = {s.role: float(s.ref_logp.sum()) for s in scored[i].sequences if s.ref_logp is not None}
        preferred.append(sums["chosen"] > sums["rejected"])
    return np.array(preferred)


# --- the model -------------------------------------------------------------------------------------------------------

LONGEST = 2048
"""Number of tokens of a text or pair that are scored; fewer if the model's context is shorter."""
HARMLESS = ["no-eos", "end-of-turn-untrained", "boundary-merge", "prompt-not-prefix", "turn-not-prefix"]
"""Template findings that matter in training only, and so may occur in rows that are only measured on."""


@dataclass(frozen=True, slots=True)
class LocalProbeModel:
    """A model loaded in this process, for probes."""

    policy: Policy
    handle: ModelHandle
    _generator: Generator

    @classmethod
    def load(cls, path: str | Path) -> LocalProbeModel:
        """Load a directory or hub id, onto the GPU if there is one. Raises AlignError if it cannot be loaded."""
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
        """Return ``n`` completions of each record's prompt. Raises AlignError for prompts that fill the context."""
        return Sampler(self._generator, self.handle, sampling, n, seed).sample(records)

    def answers(self, prompts: Sequence[Content], max_new_tokens: int) -> list[str]:
        """Return the text of a greedy completion of each prompt."""
        records = [Record("prompt", f"prompt {i}", prompt=prompt) for i, prompt in enumerate(prompts, 1)]
        groups = self.sample(records, Sampling(max_completion_length=max_new_tokens, temperature=0))
        return [completion.text for (completion,) in groups]

    def room(self, record: Record) -> int:
        """Return the number of tokens that a completion may have; 0 or less if the prompt is too long."""
        return self.handle.context - len(tokens_of(record, Encoder(self.tokenizer)))

    def prefers(self, pairs: Sequence[Record]) -> list[bool]:
        """Return True for each pair whose chosen completion is likelier than the rejected one (``prefers_chosen``)."""
        examples = self._examples(pairs, "dpo")
        return [bool(yes) for yes in prefers_chosen(self.policy, examples, self._pad)]

    def bits_per_byte(self, texts: Sequence[Record]) -> Measurement:
        """Return -sum log2 p(token) / sum bytes over records of kind text, with each document as one observation.

        Independent of the tokenizer, so models can be compared (2101.00027 section 3.1). Texts are cut at ``LONGEST``
        tokens. The first token of a text is not predicted, unless the tokenizer begins texts with one of its own; the
        token that ends a text is not counted. Raises AlignError if no token is left to predict.
        """
        examples = self._examples(texts, "pretrain")
        tokens = MICRO_TOKENS[next(self.policy.parameters()).device.type]
        scored = precompute(self.policy, examples, layout="padded", pad_id=self._pad, micro_tokens=tokens)
        special = list(self.tokenizer.all_special_ids)
        bits, sizes = list[float](), list[float]()
        for i in range(len(scored)):
            (text,) = scored[i].sequences
            assert text.ref_logp is not None
            is_text = ~np.isin(text.tokens[text.scored], special)
            size = self._bytes(text.tokens) - self._bytes(text.tokens[~text.scored])
            if size > 0 and is_text.any():
                bits.append(-float(text.ref_logp[is_text].sum(dtype=np.float64)) / math.log(2))
                sizes.append(size)
        if not sizes:
            raise AlignError("no text is longer than a token", "give longer texts", where=texts[0].source)
        return ratio(bits, sizes)

    def _bytes(self, tokens: Tokens) -> int:
        return len(text_of(self.tokenizer, tokens).encode())

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
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
