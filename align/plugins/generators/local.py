"""The embedded generator: answers from the policy's own network, in this process, on whatever device it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt

from align import Generator, ModelHandle, Request, Sample
from align.generators import Floats, Tokens
from align.models import Decoder, Policy, build_policy, completion_logprobs, independent_passes
from align.settings import Sampling


class Local(Generator):
    """Samples with the trainer's own weights, or with a model that is loaded where there is no trainer."""

    name = "local"
    shares_weights: ClassVar[bool] = True

    class Config(Generator.Config):
        """Settings in the run file."""

        batch_tokens: PositiveInt = 32768
        """Most tokens in one batch, prompts and longest answers together. Its cache takes 2 x layers x key-value
        heads x head width numbers for each."""
        gather: Literal["auto", "whole", "layers"] = "auto"
        """Under ``fsdp``: gather all weights for the time of sampling (``whole``), or a layer while it works, for each
        token again (``layers``); ``auto`` takes the first where every device has room for it."""

    config: Config

    def open(self, handle: ModelHandle) -> None:
        """Use the handle's policy; without one load its directory, onto the GPU where there is one."""
        self.handle, policy = handle, handle.policy
        if policy is None:
            model = handle.model.model_copy(
                update={"path": str(handle.directory), "revision": None, "adapter": None, "chat_template": None}
            )
            policy, _ = build_policy(model, "language", seed=0, dropout=False)
            policy = policy.to("cuda" if torch.cuda.is_available() else "cpu")
        self.policy: Policy | None = policy

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_token: Callable[[int, int, int], None] | None = None,
        on_group: Callable[[int, Sequence[Sample]], None] | None = None,
    ) -> list[list[Sample]]:
        """Sample as ``Generator.generate`` says; ``stop`` is polled at every token. Under fsdp all ranks call it."""
        decoder = Decoder(
            self._policy.unwrapped,
            self.handle.tokenizer,
            self.handle.ends,
            self.handle.context,
            self.config.batch_tokens,
        )
        with independent_passes(self._policy, self.config.gather, self.config.batch_tokens):
            return decoder.generate(requests, sampling, stop, on_token, on_group)

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """Score as ``Generator.logp`` says, in one pass over each sequence. Under ``fsdp`` all ranks call it."""
        pad = int(self.handle.tokenizer.pad_token_id or 0)
        with independent_passes(self._policy, self.config.gather):
            return completion_logprobs(self._policy, sequences, pad_id=pad, batch_tokens=self.config.batch_tokens)

    def sync(self, policy: Policy, version: int) -> None:
        """Sample from this policy from now on; no weights are copied."""
        self.policy = policy

    def close(self) -> None:
        """Release the network."""
        self.policy = None

    @property
    def _policy(self) -> Policy:
        assert self.policy is not None, "open it first"
        return self.policy
