"""A model that samples in this process, for rewards and checks that need one outside training."""

from __future__ import annotations

from collections.abc import Sequence

from align.core.data.encode import Encoder
from align.core.generation.generator_base import Generator, Request, Sample, Tokens
from align.core.inference.sampler import handle_for, text_of, tokens_of
from align.core.plugin_system.registry import registry
from align.schemas.records import Content, Record
from align.schemas.run import Choice, Model, Sampling


class LocalModel:
    """A loaded model, with its tokenizer, that samples with the embedded generator outside training.

    directory       where its files are on this machine
    context         most tokens of prompt and completion together
    special_tokens  every token that no plain text may hold, sorted
    """

    def __init__(self, path: str) -> None:
        """Load the model of a directory or hub id, onto the GPU if there is one. Raises AlignError if it cannot be."""
        self._handle = handle_for(Model(path=path))
        tokenizer = self._handle.tokenizer
        self.directory, self.context = self._handle.directory, self._handle.context
        self.special_tokens: Sequence[str] = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})
        self._encoder = Encoder(tokenizer)
        self._generator: Generator = registry.build("generator", Choice(type="local"))
        self._generator.open(self._handle)

    @property
    def has_chat_template(self) -> bool:
        """True if prompts may be conversations."""
        return bool(self._encoder.templates)

    def encode(self, prompt: Content) -> Tokens:
        """Return a prompt's tokens [P]: text as it is, messages through the chat template with its generation prompt.

        Special tokens in the text of messages stay text. Raises AlignError if the template refuses or drops a message.
        """
        return tokens_of(Record("prompt", "prompt", prompt=prompt), self._encoder)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """Return a completion for each seed of each request, as ``Generator.generate`` does."""
        return self._generator.generate(requests, sampling) if requests else []

    def decode(self, tokens: Tokens) -> str:
        """Return the text of completion tokens without special tokens."""
        return text_of(self._handle.tokenizer, tokens)

    def close(self) -> None:
        """Free the model; safe to call twice."""
        self._generator.close()
