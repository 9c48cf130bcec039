"""OpenAI-compatible servers as generator, for judging, best-of-n and evaluation. Nothing is trained through them.

Such a server takes and returns text. Prompts are decoded by our tokenizer (``completions``: as the text that they are,
special tokens included; ``chat``: as one user message; what a chat template has made of messages is refused), and
answers are encoded by it; where the server tokenises otherwise, the tokens are not those that it drew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from align import AlignError, Generator, ModelHandle, Request, Sample
from align.generators import CompletionGroups, Floats, Interrupt, Tokens
from align.http import Client, secret
from align.settings import Sampling

FINISHED: dict[str | None, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}


class Endpoint(Generator):
    """Samples completions over ``/completions`` or ``/chat/completions``.

    A sample's ``logp`` is the server's where it gives one number for each of our tokens (which need not be of the
    distribution that was drawn from), and else empty: no number is made up.
    """

    name: ClassVar[str] = "endpoint"
    trainable: ClassVar[bool] = False
    decisive: ClassVar[frozenset[str]] = frozenset({"model", "api", "extra"})  # a server may move to another address

    class Config(Generator.Config):
        """Settings in the run file."""

        url: str
        """The base address, ``https://api.example.com/v1``; plain http is for this machine only."""
        model: str
        """The model's name on the server."""
        api: Literal["chat", "completions"] = "completions"
        """``completions``: the prompt's text is continued. ``chat``: it is a user's message, and the server's own chat
        template goes around it; prompts must be plain text, not messages."""
        key_env: str | None = None
        """The environment variable that holds the API key."""
        key_file: str | None = None
        """The file that holds the API key."""
        concurrency: PositiveInt = 8
        """Requests under way at once."""
        timeout: PositiveFloat = 120.0
        """Seconds for one try."""
        retries: NonNegativeInt = 4
        """Further tries where the server is busy, down, or answers nonsense."""
        extra: dict[str, Any] = Field(default_factory=dict)
        """Further fields of a request (``top_k`` and the like, where a server knows them)."""

    config: Config
    client: Client | None = None

    def open(self, handle: ModelHandle) -> None:
        """Set up the client; no request is sent yet. Raises AlignError for an address or key that cannot be used."""
        config = self.config
        self.tokenizer = handle.tokenizer
        self._special = frozenset(handle.tokenizer.all_special_ids)
        key = secret(config.key_env, config.key_file)
        self.client = Client(config.url, key=key, timeout=config.timeout, retries=config.retries)

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_token: Callable[[int, int, int], None] | None = None,
        on_group: Callable[[int, Sequence[Sample]], None] | None = None,
    ) -> list[list[Sample]]:
        """See ``Generator``; ``on_token`` is called for all tokens of a completion once it is whole.

        Raises AlignError for settings that the API lacks.

        Seeds are sent, in 31 bits; a server may ignore them.
        """
        assert self.client is not None
        self._refuse(sampling)
        groups = CompletionGroups(requests, on_group)
        under_way: dict[Future[dict[str, Any]], tuple[int, int]] = {}
        left = [(i, n) for i, request in enumerate(requests) for n in range(len(request.seeds))][::-1]
        path = "/chat/completions" if self.config.api == "chat" else "/completions"
        try:
            while left or under_way:
                while left and len(under_way) < self.config.concurrency:
                    i, n = left.pop()
                    content = self._content(requests[i].prompt, sampling, requests[i].seeds[n])
                    under_way[self.client.submit("POST", path, content)] = i, n
                done, _ = wait(under_way, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    (i, n), sample = under_way.pop(future), self._sample(future.result())
                    if on_token is not None:
                        for token in sample.tokens.tolist():
                            on_token(i, n, token)
                    groups.add(i, n, sample)
                if stop():
                    raise Interrupt
        finally:
            for future in under_way:
                future.cancel()
        return groups.samples

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """Raise AlignError: such servers do not score tokens that they are given."""
        raise AlignError("an OpenAI-compatible server cannot score given tokens", "use local or vllm", where=self.name)

    def close(self) -> None:
        """Cancel the requests under way."""
        if self.client is not None:
            self.client.close()
        self.client = None

    def _refuse(self, sampling: Sampling) -> None:
        odd = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": []}
        if given := [name for name, neutral in odd.items() if getattr(sampling, name) != neutral]:
            raise AlignError(
                f"{', '.join(given)}: not part of the OpenAI API",
                "leave it out; where this server knows it, set it in the generator's extra",
                where=self.name,
            )

    def _content(self, prompt: Tokens, sampling: Sampling, seed: int) -> dict[str, Any]:
        chat = self.config.api == "chat"
        ids = prompt.tolist()
        own = ids[1:] if ids[:1] == [self.tokenizer.bos_token_id] else ids
        # Text that looks like a special token is encoded otherwise, so only a chat template can have put one here.
        if chat and not self._special.isdisjoint(own):
            raise AlignError(
                "the prompt is messages that the model's chat template has made one text of; a server with api: chat "
                "would take them for one user's message",
                "set api: completions, or give plain text (align sample: --raw)",
                where=self.name,
            )
        text = str(self.tokenizer.decode(ids, skip_special_tokens=chat))
        content: dict[str, Any] = {
            "model": self.config.model,
            "max_tokens": sampling.max_completion_length,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % 2**31,
            "n": 1,
        }
        content |= {"messages": [{"role": "user", "content": text}], "logprobs": True} if chat else {}
        content |= {} if chat else {"prompt": text, "logprobs": 0}
        return content | ({"stop": list(sampling.stop)} if sampling.stop else {}) | self.config.extra

    def _sample(self, reply: dict[str, Any]) -> Sample:
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] if self.config.api == "chat" else choice["text"]
            finish = FINISHED.get(choice["finish_reason"])
            logp = _logp(choice.get("logprobs"))
        except (KeyError, IndexError, TypeError, AttributeError):
            assert self.client is not None
            quoted = self.client.redacted(str(reply))[:200]  # redacted first: half a key would not be recognized
            raise AlignError(f"answered in an unknown form: {quoted}", where=self.config.url) from None
        if not isinstance(text, str) or finish is None:
            raise AlignError(f"ended an answer with {choice['finish_reason']!r}", where=self.config.url)
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not tokens:  # an answer has at least one token: the end that was drawn
            tokens = [self.tokenizer.eos_token_id]
        if logp is None or len(logp) != len(tokens):
            logp = []
        return Sample(np.array(tokens, np.int32), np.array(logp, np.float32), finish)


def _logp(reported: dict[str, Any] | None) -> list[float] | None:
    """Return the log-probabilities in a reply of either API, None where it has none."""
    if not reported:
        return None
    if reported.get("content") is not None:  # of chat completions
        return [float(entry["logprob"]) for entry in reported["content"]]
    values = reported.get("token_logprobs")  # of completions
    return None if values is None else [float(value) for value in values]
