"""A judge in this process: a model directory or hub id, sampled by the embedded generator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from align import AlignError, Request
from align.generators import Tokens
from align.models import LocalModel
from align.plugins.rewards.ai_feedback.config import JudgeConfig
from align.plugins.rewards.ai_feedback.judge import Reply
from align.plugins.rewards.ai_feedback.prompts import Conversation
from align.plugins.rewards.ai_feedback.verdict_store import Ledger, Usage
from align.settings import Sampling

AT_ONCE = 16
"""Conversations between two looks at memory: what a kill can cost."""


class LocalJudge:
    """See ``judge.Judge``."""

    def __init__(self, settings: JudgeConfig, ledger: Ledger, seed: int) -> None:
        """Load the model, onto the GPU where there is one. Raises AlignError where it cannot be had."""
        self._ledger, self._seed = ledger, seed
        self._sampling = Sampling(max_completion_length=settings.max_tokens, temperature=settings.temperature)
        self._model = LocalModel(settings.model)
        self.special, directory = self._model.special_tokens, self._model.directory
        # A directory may be written anew: its files' sizes and times stand for what is in them.
        files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in directory.iterdir())
        self.identity = json.dumps([str(directory), files, self._sampling.model_dump(), seed])

    def ask(self, conversations: Sequence[Conversation]) -> Iterator[tuple[int, Reply]]:
        """Yield the replies, ``AT_ONCE`` conversations at a time."""
        for start in range(0, len(conversations), AT_ONCE):
            prompts = dict[int, Tokens]()
            for place in range(start, min(start + AT_ONCE, len(conversations))):
                tokens = self._tokens(conversations[place])
                if len(tokens) + self._sampling.max_completion_length > self._model.context:
                    yield place, Reply(None, "error", f"what to judge is too long for the judge: {len(tokens)} tokens")
                elif not self._ledger.reserve(Usage(1, len(tokens), self._sampling.max_completion_length)):
                    yield place, Reply(None, "abstained", f"{self._ledger.cap} is reached", capped=True)
                else:
                    prompts[place] = tokens
            requests = [Request(tokens, (self._seed_of(tokens),)) for tokens in prompts.values()]
            samples = self._model.generate(requests, self._sampling)
            for (place, tokens), (sample,) in zip(prompts.items(), samples, strict=True):
                most = Usage(1, len(tokens), self._sampling.max_completion_length)
                self._ledger.settle(most, Usage(1, len(tokens), len(sample.tokens)))
                text = self._model.decode(sample.tokens) if sample.finish == "stop" else ""
                yield place, Reply(text)

    def close(self) -> None:
        """Release the model."""
        self._model.close()

    def _tokens(self, conversation: Conversation) -> Tokens:
        """Return the prompt [P]. A model without a chat template, or without a system role, gets it as one message."""
        whole = "\n\n".join(message["content"] for message in conversation)
        if not self._model.has_chat_template:
            return self._model.encode(whole)
        try:
            return self._model.encode(list(conversation))
        except AlignError:  # the template refuses the system message, or drops it
            return self._model.encode([{"role": "user", "content": whole}])

    def _seed_of(self, tokens: Tokens) -> int:
        """Return the seed of one request, from its prompt and the run's seed: other requests do not change it."""
        digest = hashlib.sha256(tokens.tobytes() + self._seed.to_bytes(8)).digest()
        return int.from_bytes(digest[:8]) >> 1
