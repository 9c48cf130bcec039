"""A client for models that reply in JSON: on a server or in a local directory. Replies are recorded and replayed.

Prompts may be confidential: they leave this machine only if that was allowed, and with ``offline`` no request is made.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from align.core.util import atomic_files
from align.core.util.http import Client, Refused, checked_url, secret
from align.schemas.errors import AlignError
from align.schemas.records import Record
from align.schemas.run import Sampling

JsonClient = Callable[[str, dict[str, Any]], str]
"""A function from prompt and JSON schema to the text of the model's reply."""

MAX_TOKENS = 4096
"""Largest number of tokens in a reply."""
GREEDY = {"temperature": 0, "seed": 0, "max_tokens": MAX_TOKENS}


def open_client(
    model: str,
    url: str | None = None,
    *,
    key_env: str | None = None,
    allow_network: bool = False,
    offline: bool = False,
    record: Path | None = None,
) -> RecordedClient:
    """Return a client of a server's model, or without ``url`` of one in a directory; replies are kept in ``record``.

    record: a directory; by default one in align's cache. offline: only recorded replies are given, so no address is
    checked. Raises AlignError as ``endpoint_client`` does.
    """
    here = url is None or offline  # a local model is loaded at its first request, so offline never
    ask = (
        local_client(model) if here else endpoint_client(str(url), model, key_env=key_env, allow_network=allow_network)
    )
    return RecordedClient(ask, record or atomic_files.cache_directory() / "replies", model, offline=offline)


class RecordedClient:
    """A client that records replies, one file each, named by the hash of prompt, schema and model.

    Each file holds model and prompt too. offline: give recorded replies only, and raise AlignError for others.
    """

    def __init__(self, ask: JsonClient, directory: Path, model: str, *, offline: bool = False) -> None:
        self._ask, self._directory, self._model, self._offline = ask, directory, model, offline

    def __call__(self, prompt: str, schema: dict[str, Any]) -> str:
        """Return the recorded reply, else ask the model and record its reply."""
        path = self._path(prompt, schema)
        if path.is_file():
            return self._recorded(path)
        if self._offline:
            what = f"nothing is recorded of {self._model!r} for this text, and --offline forbids asking"
            raise AlignError(
                what, "record it first, without --offline (from Python offline=True)", where=str(self._directory)
            )
        reply = self._ask(prompt, schema)
        self.keep(prompt, schema, reply)
        return reply

    def keep(self, prompt: str, schema: dict[str, Any], reply: str) -> None:
        """Record a reply, in place of an older one."""
        record = {"model": self._model, "prompt": prompt, "reply": reply}
        atomic_files.write_json(self._path(prompt, schema), record)

    def _path(self, prompt: str, schema: dict[str, Any]) -> Path:
        request = {"model": self._model, "prompt": prompt, "schema": schema}
        return self._directory / f"{hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()}.json"

    def _recorded(self, path: Path) -> str:
        try:
            # A reply may be written by hand, without a checksum.
            reply = atomic_files.verified(path.read_bytes(), must=False).get("reply")
        except (OSError, ValueError):
            reply = None
        if not isinstance(reply, str):
            raise AlignError("is no recorded reply", "remove it, and it is asked again", where=str(path))
        return reply


def endpoint_client(url: str, model: str, *, key_env: str | None = None, allow_network: bool = False) -> JsonClient:
    """Return a client of an OpenAI-compatible server (``/chat/completions``), greedy and with a fixed seed.

    Servers differ in how they take a schema, so if one form is refused (status 400 or 422) the next is tried:
    ``response_format`` with a schema, vLLM's ``structured_outputs``, ``response_format`` with any object, and none at
    all; then all of these without ``GREEDY``, which some models refuse. key_env: environment variable with the key.
    Raises AlignError for an address on another machine without ``allow_network``.
    """
    address, local = checked_url(url)
    if not (local or allow_network):
        what = f"the description would leave this machine, for {address}"
        raise AlignError(
            what, "add --allow-network (from Python allow_network=True) if it may, or name a server on this machine"
        )
    key = secret(key_env)

    def ask(prompt: str, schema: dict[str, Any]) -> str:
        request = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        refused: Refused | None = None
        with Client(address, key=key, timeout=300.0, retries=2) as client:
            for settings, structure in itertools.product((GREEDY, {}), _structures(schema)):
                try:
                    return _text(client, client.post("/chat/completions", request | settings | structure))
                except Refused as error:
                    if error.status not in (400, 422):
                        raise
                    refused = error
        assert refused is not None
        raise refused

    return ask


def _structures(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    named = {"name": "facts", "schema": schema, "strict": True}
    yield {"response_format": {"type": "json_schema", "json_schema": named}}
    yield {"structured_outputs": {"json": schema}}
    yield {"response_format": {"type": "json_object"}}
    yield {}


def _text(client: Client, reply: dict[str, Any]) -> str:
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise AlignError(f"answered in an unknown form: {client.redacted(str(reply))[:200]}", where=client.base_url)
    return text


def local_client(path: str) -> JsonClient:
    """Return a client of a model directory or hub id that samples greedily in this process.

    The model is loaded at the first request. The schema is not enforced: it is in the prompt only, and the caller
    checks the reply.
    """

    @functools.cache
    def model() -> Any:
        from align.core.inference.probe_models import LocalProbeModel  # it imports torch

        return LocalProbeModel.load(path)

    def ask(prompt: str, schema: dict[str, Any]) -> str:
        chat = model().tokenizer.chat_template is not None
        content = [{"role": "user", "content": prompt}] if chat else prompt
        record = Record("prompt", "the prompt", prompt=content)
        if (room := model().room(record)) <= 0:
            what = f"the prompt is {1 - room} tokens longer than its context can hold"
            raise AlignError(what, "name a model with a longer context", where=path)
        ((completion,),) = model().sample([record], Sampling(max_completion_length=MAX_TOKENS, temperature=0))
        return str(completion.text)

    return ask
