"""A model asked for JSON outside training: a server or a local directory, each reply recorded and replayed.

What may be confidential leaves the machine only where that was allowed, and with ``offline`` nothing is asked at all.
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
"""Prompt and JSON schema to the reply's text."""

MAX_TOKENS = 4096
"""Of a reply."""
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
    here = url is None or offline  # a local model is loaded only when it is asked
    ask = (
        local_client(model) if here else endpoint_client(str(url), model, key_env=key_env, allow_network=allow_network)
    )
    return RecordedClient(ask, record or atomic_files.cache_directory() / "replies", model, offline=offline)


class RecordedClient:
    """A client that remembers: one file a reply, under the hash of prompt, schema and model.

    offline: only what was recorded is answered; else AlignError. The file says what was asked of whom.
    """

    def __init__(self, ask: JsonClient, directory: Path, model: str, *, offline: bool = False) -> None:
        self._ask, self._directory, self._model, self._offline = ask, directory, model, offline

    def __call__(self, prompt: str, schema: dict[str, Any]) -> str:
        """The recorded reply, else a new one, recorded."""
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
        """Record a reply, over the one that was there."""
        record = {"model": self._model, "prompt": prompt, "reply": reply}
        atomic_files.write_json(self._path(prompt, schema), record)

    def _path(self, prompt: str, schema: dict[str, Any]) -> Path:
        asked = {"model": self._model, "prompt": prompt, "schema": schema}
        return self._directory / f"{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()}.json"

    def _recorded(self, path: Path) -> str:
        try:
            # A reply may be written by hand, without a sum.
            reply = atomic_files.verified(path.read_bytes(), must=False).get("reply")
        except (OSError, ValueError):
            reply = None
        if not isinstance(reply, str):
            raise AlignError("is no recorded reply", "remove it, and it is asked again", where=str(path))
        return reply


def endpoint_client(url: str, model: str, *, key_env: str | None = None, allow_network: bool = False) -> JsonClient:
    """A model behind an OpenAI-compatible server (``/chat/completions``), greedy, with a fixed seed.

    Servers ask for structure in different words, so those that refuse one are asked in the next: ``response_format``
    with a schema, vLLM's ``structured_outputs``, ``response_format`` with any object, and none at all; and all of these
    without ``GREEDY``, which some models refuse.
    Raises AlignError for an address of another machine without ``allow_network``.
    """
    address, local = checked_url(url)
    if not (local or allow_network):
        what = f"the description would leave this machine, for {address}"
        raise AlignError(
            what, "add --allow-network (from Python allow_network=True) if it may, or name a server on this machine"
        )
    key = secret(key_env)

    def ask(prompt: str, schema: dict[str, Any]) -> str:
        asked = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        refused: Refused | None = None
        with Client(address, key=key, timeout=300.0, retries=2) as client:
            for settings, structure in itertools.product((GREEDY, {}), _structures(schema)):
                try:
                    return _text(client, client.post("/chat/completions", asked | settings | structure))
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
    """A model directory or hub id on this machine, asked greedily through the embedded generator; loaded when asked.

    The schema is in the prompt only: what a small model makes of it is checked by whoever asks.
    """

    @functools.cache
    def model() -> Any:
        from align.core.inference.probe_models import LocalProbeModel  # it imports torch

        return LocalProbeModel.load(path)

    def ask(prompt: str, schema: dict[str, Any]) -> str:
        chat = model().tokenizer.chat_template is not None
        asked = Record("prompt", "the prompt", prompt=[{"role": "user", "content": prompt}] if chat else prompt)
        if (room := model().room(asked)) <= 0:
            what = f"what is asked is {1 - room} tokens longer than its context can hold"
            raise AlignError(what, "name a model with a longer context", where=path)
        ((completion,),) = model().sample([asked], Sampling(max_completion_length=MAX_TOKENS, temperature=0))
        return str(completion.text)

    return ask
