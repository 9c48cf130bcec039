"""A learned reward: any transformers sequence-classification model with one label, or what align exported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt
from transformers import AutoConfig

from align.core.data.collate import collate
from align.core.data.doctor import Settings
from align.core.data.encode import Encoder
from align.core.data.examples import Example
from align.core.data.examples import Sequence as TokenSequence
from align.core.data.findings import CATALOGUE
from align.core.data.guard import Refusal
from align.core.data.plan import Layout, cut
from align.core.data.template import drafts
from align.core.model.adapter import is_adapter
from align.core.model.load import build_policy
from align.core.model.packing import layout_for
from align.core.model.policy import Policy, Scores
from align.core.model.source import resolve_model_path
from align.core.model.weights import without_gradient_or_dropout
from align.core.rollout.reward import Answer, Place, Reward, Score
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Model

_WHOLE = Settings(
    ("completion",), scores_prompt=False, reward=True, max_length=0, truncation="error", allow=frozenset()
)


class RewardModelScore(Reward):
    """The score that a reward model gives to prompt and answer, as tokens exactly what it was trained on."""

    name = "reward_model"

    class Config(Reward.Config):
        """Which model, and how it is run."""

        path: str
        """A directory, a hub id, or ``stage:NAME`` for what an earlier stage trained."""
        revision: str | None = None
        """A hub revision."""
        dtype: Literal["float32", "bfloat16", "float16"] = "float32"
        """Type of the weights."""
        max_length: PositiveInt | None = None
        """Longest prompt and answer in tokens; longer ones get no score. Default: as the model's config says."""
        batch_tokens: PositiveInt = 16384
        """Most tokens in one forward pass, padding included."""
        layout: Literal["auto", "packed", "padded"] = "auto"
        """As ``train.layout``: ``packed`` puts answers into one row where the model can tell them apart."""
        trust_remote_code: bool = False
        """Run model code that comes with the weights."""
        chat_template: str | None = None
        """A file with a Jinja template in place of the model's own."""

    config: Config
    _policy: Policy | None = None
    _layout: Layout | None = None

    def open(self, place: Place) -> None:
        """Load the model. Raises AlignError for one that is no reward model."""
        asked = self.config
        model = Model(
            path=asked.path,
            revision=asked.revision,
            dtype=asked.dtype,
            trust_remote_code=asked.trust_remote_code,
            chat_template=asked.chat_template,
        )
        directory = resolve_model_path(model.path, model.revision, model.trust_remote_code)
        if not is_adapter(directory):
            kinds = AutoConfig.from_pretrained(directory, trust_remote_code=model.trust_remote_code).architectures or []
            if not any("SequenceClassification" in kind or "RewardModel" in kind for kind in kinds):
                found = f"holds {', '.join(kinds) or 'a model of no stated kind'}, whose scores would be random"
                mend = "give a sequence-classification model with one label; algorithm reward_model trains one"
                raise AlignError(found, mend, where=f"reward reward_model: {asked.path}")
        policy, tokenizer = build_policy(model, "reward", seed=0, dropout=False)
        self._policy, self._encoder = policy.to(place.accelerator), Encoder(tokenizer)
        self._pad, self._device = self._encoder.pad_id or 0, place.accelerator
        told = getattr(policy.unwrapped.config.get_text_config(), "max_position_embeddings", None)
        self._longest = asked.max_length or int(told or 2**31)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """The model's scores, each from its own answer alone; ``error`` where no tokens can be made of it."""
        made = [self._example(answer) for answer in answers]
        examples = [each for each in made if isinstance(each, Example)]
        values = iter(self._values(examples) if examples else [])
        return [Score(next(values)) if isinstance(each, Example) else each for each in made]

    def _example(self, answer: Answer) -> Example | Score:
        record = Record("completion", "the answer", prompt=answer.prompt, completion=answer.completion)
        try:
            ((draft,),), _ = drafts(record, self._encoder, _WHOLE)
        except Refusal as refusal:
            return Score(None, "error", why=f"{CATALOGUE[refusal.finding].what}: {refusal.detail}")
        if not 0 < len(draft.ids) <= self._longest:
            return Score(None, "error", why=f"has {len(draft.ids)} tokens; the model reads 1 to {self._longest}")
        return Example("the answer", (TokenSequence("completion", draft.ids, draft.scored),))

    def _values(self, examples: Sequence[Example]) -> list[float]:
        policy = self._policy
        assert policy is not None, "open() comes first"
        if self._layout is None:
            self._layout = layout_for(policy, self._device, self.config.layout, examples, self._pad)
        found = np.full(len(examples), math.nan)
        (micros,) = cut([e.lengths for e in examples], 1, self.config.batch_tokens, None, self._layout)
        with without_gradient_or_dropout(policy), torch.autocast(self._device, enabled=False):
            for micro in micros:
                if micro:
                    scores: Scores = policy(
                        collate([examples[i] for i in micro], self._layout, self._pad).to(self._device)
                    )
                    assert scores.score_B is not None
                    found[micro] = scores.score_B.double().cpu().numpy()
        return [float(value) for value in found]

    def close(self) -> None:
        """Free the model."""
        self._policy = None
