"""A learned reward: any transformers sequence-classification model with one label, or what align exported. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from align import Answer, Reward, Score
from align.rewards import RewardContext
from align.settings import Model

if TYPE_CHECKING:
    from align.models import RewardNetwork


class RewardModelScore(Reward):
    """The score that a reward model gives to prompt and answer, read as it read those it was trained on."""

    name = "reward_model"
    reads = frozenset({"path", "chat_template"})

    class Config(Reward.Config):
        """The model, and how it is run."""

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
    _network: RewardNetwork | None = None

    def open(self, place: RewardContext) -> None:
        """Load the model. Raises AlignError for one that is no reward model."""
        from align.models import RewardNetwork

        config = self.config
        model = Model(
            path=config.path,
            revision=config.revision,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
            chat_template=config.chat_template,
        )
        self._network = RewardNetwork(
            model,
            place.accelerator,
            max_length=config.max_length,
            batch_tokens=config.batch_tokens,
            layout=config.layout,
        )

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """The model's scores, each from its own answer alone; ``error`` where no tokens can be made of it."""
        assert self._network is not None, "open() comes first"
        return self._network.score(answers)

    def close(self) -> None:
        """Free the model."""
        self._network = None
