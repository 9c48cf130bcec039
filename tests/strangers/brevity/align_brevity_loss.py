"""The negative log-likelihood, scaled: the shortest algorithm there is."""

from __future__ import annotations

from pydantic import PositiveFloat

import align


class PlainNLL(align.Algorithm):
    """scale * -log p of every scored token."""

    name = "plain_nll"
    paper = "none"
    learns_from = ("completion",)
    learning_rate = 1e-4

    class Config(align.Config):
        """One number."""

        scale: PositiveFloat = 1.0
        """Factor on the loss."""

    config: Config

    def loss(self, batch: align.Batch) -> align.LossOutput:
        return align.LossOutput([align.LossTerm(-batch.logp_T, per="token", weight=self.config.scale)], {})
