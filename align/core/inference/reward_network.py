"""A reward model that scores completions: it tokenizes them as in its training, and scores the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from transformers import AutoConfig

from align.core.data.batch import collate
from align.core.data.chat_template import tokenize_record
from align.core.data.encode import Encoder, UnusableRow
from align.core.data.examples import Example, TokenSequence
from align.core.data.step_plan import FORWARD, Layout, plan_micro_batches
from align.core.data.template_checks import CATALOGUE, TokenizationSettings
from align.core.models.architecture import is_adapter, resolve_model_path
from align.core.models.load_and_export import build_policy
from align.core.models.packing import layout_for, limits_for
from align.core.models.policy import Scores, without_gradient_or_dropout
from align.core.rewards.reward_base import Answer, Score
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Model

_WHOLE = TokenizationSettings(
    ("completion",),
    scores_prompt=False,
    reward=True,
    max_length=0,
    truncation="error",
    allow=frozenset({"reasoning-lost"}),  # many reward models are made to judge the answer without its thoughts
)


class RewardNetwork:
    """A loaded reward model: a transformers sequence-classification model with one label, or what align exported.

    device        ``cpu`` or ``cuda``
    max_length    most tokens of prompt and answer; longer ones get no score. None: as many as the model takes
    batch_tokens  most tokens in one forward pass, padding included
    layout        as ``train.layout``: ``packed`` puts answers into one row where the model can tell them apart
    """

    def __init__(
        self,
        model: Model,
        device: str,
        *,
        max_length: int | None = None,
        batch_tokens: int = 16384,
        layout: Literal["auto", "packed", "padded"] = "auto",
    ) -> None:
        """Load the model. Raises AlignError for one without a trained reward head: its scores would be random."""
        directory = resolve_model_path(model.path, model.revision, model.trust_remote_code)
        if not is_adapter(directory):
            kinds = AutoConfig.from_pretrained(directory, trust_remote_code=model.trust_remote_code).architectures or []
            if not any("SequenceClassification" in kind or "RewardModel" in kind for kind in kinds):
                found = f"holds {', '.join(kinds) or 'a model of no stated kind'}, whose scores would be random"
                fix = "give a sequence-classification model with one label; algorithm reward_model trains one"
                raise AlignError(found, fix, where=f"reward reward_model: {model.path}")
        policy, tokenizer = build_policy(model, "reward", seed=0, dropout=False)
        positions = getattr(policy.unwrapped.config.get_text_config(), "max_position_embeddings", None)
        wanted = max_length or int(positions or 2**31)
        self._longest = limits_for(policy, wanted).taken or wanted  # a table of positions may hold fewer
        self._policy, self._encoder, self._device = policy.to(device), Encoder(tokenizer), device
        self._pad, self._tokens = self._encoder.pad_id or 0, batch_tokens
        self._wanted: Literal["auto", "packed", "padded"] = layout
        self._layout: Layout | None = None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Return a score for each completion by itself; ``error`` for one that cannot be tokenized or is too long."""
        made = [self._example(answer) for answer in answers]
        examples = [each for each in made if isinstance(each, Example)]
        values = iter(self._values(examples) if examples else [])
        return [Score(next(values)) if isinstance(each, Example) else each for each in made]

    def _example(self, answer: Answer) -> Example | Score:
        record = Record("completion", "the answer", prompt=answer.prompt, completion=answer.completion)
        try:
            ((draft,),), _ = tokenize_record(record, self._encoder, _WHOLE)
        except UnusableRow as refusal:
            return Score(None, "error", why=f"{CATALOGUE[refusal.finding].what}: {refusal.detail}")
        if not 0 < len(draft.ids) <= self._longest:
            return Score(None, "error", why=f"has {len(draft.ids)} tokens; the model reads 1 to {self._longest}")
        return Example("the answer", (TokenSequence("completion", draft.ids, draft.scored),))

    def _values(self, examples: Sequence[Example]) -> list[float]:
        layout: Layout = self._layout or layout_for(
            self._policy, self._device, self._wanted, examples, self._pad, share=True
        )
        self._layout = layout
        found = np.full(len(examples), math.nan)
        (micros,) = plan_micro_batches(examples, 1, self._tokens, None, layout, FORWARD[self._device])
        with without_gradient_or_dropout(self._policy), torch.autocast(self._device, enabled=False):
            for micro, trees in micros:
                if not micro:
                    continue
                batch = collate([examples[i] for i in micro], layout, self._pad, trees=trees)
                scores: Scores = self._policy(batch.to(self._device))
                assert scores.score_B is not None
                found[micro] = scores.score_B.double().cpu().numpy()
        return [float(value) for value in found]
