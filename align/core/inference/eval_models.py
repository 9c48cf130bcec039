"""Models that are evaluated or that judge, a generator with its weights or a server: queries in, replies out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from align.core.algorithm import contract
from align.core.data.encode import Encoder
from align.core.evaluation.eval import Generate, LogLikelihood, Reply
from align.core.evaluation.store import WEIGHTS, weights_sum
from align.core.generation.generator_base import Generator, ModelHandle, Request, Tokens, TurnReader
from align.core.inference.sampler import handle_for, tokens_of
from align.core.plugin_system.registry import registry
from align.core.util import atomic_files
from align.core.util.http import Client, Refused, secret
from align.core.util.progress import working
from align.schemas.errors import AlignError
from align.schemas.records import Content, Record
from align.schemas.run import Choice, Model, Sampling


class BadQuery(AlignError):
    """Raised for a query that a model cannot take. number: its place among those given, from 0."""

    def __init__(self, number: int, error: AlignError) -> None:
        super().__init__("", problems=error.problems)
        self.number = number


@contextmanager
def _numbered(number: int) -> Iterator[None]:
    try:
        yield
    except AlignError as error:
        raise BadQuery(number, error) from error


class EvalModel(Protocol):
    """A model that replies to queries.

    identity: everything that decides its replies, as JSON (hashes of weights, tokenizer, chat template; a server's
    address and model name). likelihoods: True if it can score given text.
    """

    identity: Mapping[str, Any]
    likelihoods: bool

    def generate(self, wanted: Sequence[tuple[Generate, int]]) -> list[Reply]:
        """Return a completion for each query and seed, in their order."""
        ...

    def loglikelihood(self, wanted: Sequence[LogLikelihood]) -> list[Reply]:
        """Return the log-probability of each continuation, in their order."""
        ...


class GeneratorModel:
    """An open generator with its tokenizer. Completions depend on prompt, settings and seed, not on the batch."""

    likelihoods = True

    def __init__(self, generator: Generator, handle: ModelHandle, identity: Mapping[str, Any]) -> None:
        self.identity = identity
        self._generator, self._handle = generator, handle
        self._encoder = Encoder(handle.tokenizer)
        self._turns = TurnReader(handle.tokenizer, self._encoder)

    def generate(self, wanted: Sequence[tuple[Generate, int]]) -> list[Reply]:
        """See ``EvalModel``. Raises BadQuery for a prompt that is longer than the model's context."""
        replies: list[Reply | None] = [None] * len(wanted)
        for sampling, numbers in _by_sampling([query for query, _ in wanted]):
            fitting = []
            for number in numbers:
                with _numbered(number):
                    fitting.append(self._fitting(wanted[number][0]))
            for room, group in _by_room(fitting, sampling, self._handle.context):
                settings = sampling.model_copy(update={"max_completion_length": room})
                requests = [Request(fitting[place][1], (wanted[numbers[place]][1],)) for place in group]
                sampled = contract.generate(self._generator, requests, settings)
                for place, (sample,) in zip(group, sampled, strict=True):
                    opening = self._turns.opening(fitting[place][0])
                    text = self._turns.text(sample.tokens.tolist(), opening)
                    reply = Reply(cut(text, sampling.stop), len(sample.tokens), sample.finish)
                    replies[numbers[place]] = reply
        return [reply for reply in replies if reply is not None]

    def loglikelihood(self, wanted: Sequence[LogLikelihood]) -> list[Reply]:
        """See ``EvalModel``. Raises BadQuery where context and continuation are longer than the model's context."""
        pieces = []
        for number, query in enumerate(wanted):
            with _numbered(number):
                pieces.append([self._pair(query)] if query.context else self._windows(query.continuation))
        scores = iter(contract.logp(self._generator, [pair for pairs in pieces for pair in pairs]))
        replies = []
        for pairs in pieces:
            found = np.concatenate(list(islice(scores, len(pairs))))
            replies.append(Reply(tokens=len(found), logp=float(found.sum(dtype=np.float64))))
        return replies

    def _fitting(self, query: Generate) -> tuple[Record, Tokens]:
        """Return the first of the query's prompts that leaves room for the longest completion, else the last."""
        for prompt in (query.prompt, *query.shorter):
            record = _record(prompt, query.tools)
            tokens = tokens_of(record, self._encoder)
            if len(tokens) + query.sampling.max_completion_length <= self._handle.context:
                break
        if len(tokens) >= self._handle.context:
            raise self._too_long(len(tokens))
        return record, tokens

    def _pair(self, query: LogLikelihood) -> tuple[Tokens, Tokens]:
        """Return the tokens of context and continuation, cut where lm-eval cuts them."""
        if isinstance(query.context, str):
            text = query.context.rstrip()
            moved = query.context[len(text) :]
            before = self._encode(text)
            both = self._encode(text + moved + query.continuation)
        else:
            before = self._encode(query.context)
            own = self._handle.tokenizer(query.continuation, add_special_tokens=False)["input_ids"]
            both = np.concatenate([before, np.array(own, before.dtype)])
        continuation = both[len(before) :]
        if not len(before) or not len(continuation):
            raise AlignError("a likelihood needs a context and a continuation of at least one token each")
        if len(both) > self._handle.context:
            raise self._too_long(len(both))
        return both[: len(before)], continuation

    def _windows(self, document: str) -> list[tuple[Tokens, Tokens]]:
        """Return a document's tokens as pairs of what is read and what is scored, each token scored once.

        lm-eval's rolling windows: each starts from the last token of the one before, and the last one, which is short,
        reads back as far as the context allows.
        """
        tokenizer = self._handle.tokenizer
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        tokens = np.array(tokenizer(document, add_special_tokens=False)["input_ids"], np.int32)
        if first is None or not len(tokens):
            missing = "a document" if first is not None else "a tokenizer with a bos or eos token, and a document"
            raise AlignError(f"the likelihood of a document needs {missing} of at least one token", where="eval")
        size = self._handle.context - 1  # one place is for the token before
        pairs = [(np.array([first], np.int32), tokens[:size])]
        for start in range(size, len(tokens), size):
            end = min(start + size, len(tokens))
            pairs.append((tokens[end - size - 1 : start], tokens[start:end]))
        return pairs

    def _encode(self, content: Content) -> Tokens:
        return tokens_of(_record(content), self._encoder)

    def _too_long(self, tokens: int) -> AlignError:
        what = f"a prompt has {tokens:,} tokens, and the model's context {self._handle.context:,}"
        fix = "shorten it, take fewer examples in the prompt, or a model with a longer context"
        return AlignError(what, fix, where="eval")


def _record(content: Content, tools: Sequence[Mapping[str, Any]] = ()) -> Record:
    return Record("prompt", "prompt", prompt=content, tools=[dict(tool) for tool in tools] or None)


def _by_sampling(queries: Sequence[Generate]) -> Iterator[tuple[Sampling, list[int]]]:
    """Yield the places of queries with equal settings; a batch has one setting."""
    groups: dict[str, tuple[Sampling, list[int]]] = {}
    for number, query in enumerate(queries):
        groups.setdefault(query.sampling.model_dump_json(), (query.sampling, []))[1].append(number)
    yield from groups.values()


def _by_room(
    fitting: Sequence[tuple[Record, Tokens]], sampling: Sampling, context: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield the longest completion and the places of the prompts that it fits behind; few prompts are too long."""
    groups: dict[int, list[int]] = {}
    for place, (_, tokens) in enumerate(fitting):
        groups.setdefault(min(sampling.max_completion_length, context - len(tokens)), []).append(place)
    yield from groups.items()


def cut(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop string."""
    ends = [found for each in stop if (found := text.find(each)) >= 0]
    return text[: min(ends)] if ends else text


_FINISHED = {"stop": "stop", "length": "length", "tool_calls": "stop"}


class ServerModel:
    """An OpenAI-compatible server: messages over ``/chat/completions``, strings over ``/completions``."""

    likelihoods = False

    def __init__(self, client: Client, model: str, concurrency: int = 8) -> None:
        self.identity: Mapping[str, Any] = {"url": client.base_url, "model": model}
        self._client, self._model, self._concurrency = client, model, concurrency

    def generate(self, wanted: Sequence[tuple[Generate, int]]) -> list[Reply]:
        """See ``EvalModel``. Raises AlignError for an answer in an unknown form; seeds are sent in 31 bits."""
        replies = []
        for start in range(0, len(wanted), self._concurrency):
            window = wanted[start : start + self._concurrency]
            under_way = [self._client.submit("POST", *self._request(query, seed)) for query, seed in window]
            try:
                replies += [
                    self._reply(future.result(), query) for future, (query, _) in zip(under_way, window, strict=True)
                ]
            finally:
                for future in under_way:
                    future.cancel()
        return replies

    def loglikelihood(self, wanted: Sequence[LogLikelihood]) -> list[Reply]:
        """Raise AlignError: such servers do not score text that they are given."""
        fix = "give the model's directory instead of a server"
        raise AlignError("a server cannot score given text", fix, where=self._client.base_url)

    def _request(self, query: Generate, seed: int) -> tuple[str, dict[str, Any]]:
        sampling = query.sampling
        fields = {
            "model": self._model,
            "max_tokens": sampling.max_completion_length,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % 2**31,
        }
        fields |= {"stop": sampling.stop} if sampling.stop else {}
        fields |= {"tools": list(query.tools)} if query.tools else {}
        if isinstance(query.prompt, str):
            return "/completions", fields | {"prompt": query.prompt}
        return "/chat/completions", fields | {"messages": query.prompt}

    def _reply(self, found: dict[str, Any], query: Generate) -> Reply:
        try:
            choice = found["choices"][0]
            text = choice["text"] if isinstance(query.prompt, str) else _message_text(choice["message"])
            finish = _FINISHED[choice["finish_reason"]]
            tokens = int((found.get("usage") or {}).get("completion_tokens") or 0)
        except (KeyError, IndexError, TypeError, AttributeError):
            quoted = self._client.redacted(str(found))[:200]
            raise AlignError(f"answered in an unknown form: {quoted}", where=self._client.base_url) from None
        if text is None and query.tools:
            text = ""  # a server that looks for calls has no other word for an answer of nothing
        if not isinstance(text, str):
            raise AlignError("answered without text", where=self._client.base_url)
        return Reply(cut(text, query.sampling.stop), tokens, "length" if finish == "length" else "stop")


def _message_text(message: Mapping[str, Any]) -> str | None:
    """Return a message's text with its tool calls, which servers take out of it, back in it as JSON; None for neither.

    The form is that of Qwen's and Hermes' templates, so an eval reads the same of a server and of a local model.
    """
    calls = [each["function"] for each in message.get("tool_calls") or ()]
    shown = [{"name": each["name"], "arguments": each["arguments"]} for each in calls]
    content = message.get("content")
    if not shown and not isinstance(content, str):
        return None
    parts = [content or "", *(f"<tool_call>\n{json.dumps(each)}\n</tool_call>" for each in shown)]
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to open: a directory or hub id with its generator, or with ``url`` a server's model.

    model: for a server its name there; empty: the only one that it serves. chat_template: a file that replaces the
    tokenizer's own. context: most tokens of prompt and completion; None: the model's.
    """

    model: str = ""
    url: str | None = None
    key_env: str | None = None
    generator: Choice = field(default_factory=lambda: Choice(type="local"))
    trust_remote_code: bool = False
    context: int | None = None
    revision: str | None = None
    chat_template: str | None = None


@contextmanager
def open_model(choice: ModelChoice) -> Iterator[EvalModel]:
    """Load a model, or set up the client of a server; close it at the end.

    Raises AlignError for a model that cannot be loaded and a server that does not answer.
    """
    if choice.url is not None:
        with Client(choice.url, key=secret(choice.key_env), timeout=600.0) as client:
            yield ServerModel(client, choice.model or _only_model(client))
        return
    model = Model(
        path=choice.model,
        revision=choice.revision,
        trust_remote_code=choice.trust_remote_code,
        chat_template=choice.chat_template,
    )
    handle = handle_for(model, choice.context)
    generator: Generator = registry.build("generator", choice.generator)
    with working(f"hashing the model {choice.model}"):
        # Two generators round differently: a run begun with one must not go on with another.
        decisive = {name: getattr(generator.config, name) for name in sorted(generator.decisive)}
        identity = model_identity(handle) | {"generator": {"type": choice.generator.type, **decisive}}
    try:
        with working(f"loading the model {choice.model}"):
            generator.open(handle)
        yield GeneratorModel(generator, handle, identity)
    finally:
        generator.close()


def _only_model(client: Client) -> str:
    try:
        names = [each["id"] for each in client.get("/models")["data"]]
    except (Refused, KeyError, TypeError):
        names = []
    if len(names) != 1:
        shown = ", ".join(names) or "does not list its models"
        raise AlignError(f"serves {shown}", "name one: --served-model NAME", where=client.base_url)
    return str(names[0])


_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "*.model", "special_tokens_map.json", "added_tokens.json")


def model_identity(handle: ModelHandle) -> dict[str, Any]:
    """Return hashes of a model's weights, tokenizer and chat template; its path is no part of it."""
    template = handle.tokenizer.chat_template
    return {
        "weights": weights_sum(_sums(handle.directory, WEIGHTS)),
        "tokenizer": atomic_files.digest([*map(list, _sums(handle.directory, _TOKENIZER).items())]),
        "chat_template": atomic_files.digest(template) if template else None,
        "context": handle.context,
    }


def _sums(directory: Path, patterns: Sequence[str]) -> dict[str, str]:
    files = sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})
    return {path.name: atomic_files.sha256(path) for path in files}
