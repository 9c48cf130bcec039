"""A judge behind an OpenAI-compatible endpoint: many requests at once, within rate and cap, patient with failures."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from typing import Any

from align.http import LONGEST_WAIT, Client, Refused, Unavailable, secret
from align.plugins.rewards.ai_feedback.config import JudgeConfig
from align.plugins.rewards.ai_feedback.judge import Reply
from align.plugins.rewards.ai_feedback.prompts import Conversation
from align.plugins.rewards.ai_feedback.verdict_store import Ledger, Usage

LONGEST_REPLY = 2**22
"""Bytes of a response."""
ENDING = Reply(None, "error", "the run is ending")
_HOPELESS = (401, 403, 404)
"""Statuses that every further request would get too: a wrong key, address or model."""
_MOST_TOKENS = 2**40
"""Above any honest count."""


class EndpointJudge:
    """See ``judge.Judge``. Limits are those of the run: each of its ``world_size`` processes takes its share."""

    special: Sequence[str] = ()

    def __init__(self, settings: JudgeConfig, ledger: Ledger, world_size: int) -> None:
        """Raises AlignError for a key that cannot be had, and for plain http to another machine."""
        assert settings.url is not None
        self._settings, self._ledger = settings, ledger
        key = secret(settings.key_env, settings.key_file)
        self._client = Client(settings.url, key=key, timeout=settings.request_timeout, retries=0, limit=LONGEST_REPLY)
        self._fields = {
            "model": settings.model,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            **settings.parameters,
        }
        self.identity = json.dumps([settings.url, self._fields], sort_keys=True)
        # One pool for all calls of ``ask``, so that ``concurrency`` holds over them together.
        self._pool = ThreadPoolExecutor(max(1, settings.concurrency // world_size), "align-judge")
        per_minute = settings.requests_per_minute
        self._gap = 60.0 * world_size / per_minute if per_minute else 0.0
        self._next, self._turn, self._over = 0.0, threading.Lock(), threading.Event()

    def ask(self, conversations: Sequence[Conversation]) -> Iterator[tuple[int, Reply]]:
        """Replies as they come; any number of threads may ask. Raises AlignError where key, address or model are wrong.

        A call that raises, or is left early, ends those of the other threads: their replies then say so.
        """
        waiting = {self._pool.submit(self._reply, each): place for place, each in enumerate(conversations)}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:  # the caller has stopped: no reply would be read
            for each in waiting:
                each.cancel()
            self._stop()
            wait(waiting)
            raise

    def close(self) -> None:
        """Cancel the requests under way."""
        self._stop()
        self._pool.shutdown(cancel_futures=True)

    def _stop(self) -> None:
        with self._turn:
            first = not self._over.is_set()
            self._over.set()
        if first:
            self._client.close()

    def _reply(self, conversation: Conversation) -> Reply:
        """Return the reply to one conversation. Raises Refused where no request can be answered."""
        try:
            return self._request(conversation)
        except BaseException:
            if self._over.is_set():  # the fault of the end, not of the request: another call has the cause
                return ENDING
            raise

    def _request(self, conversation: Conversation) -> Reply:
        """Send a request until there is a reply. Each retry waits twice as long as the last, or as the server says."""
        fields = {"messages": conversation, **self._fields}
        content = {name: value for name, value in fields.items() if value is not None}
        most = Usage(1, _most_tokens(conversation), self._settings.max_tokens)
        reply = ENDING
        for number in range(self._settings.retries + 1):
            if self._over.is_set():
                break
            if not self._ledger.reserve(most):
                return Reply(None, "abstained", f"{self._ledger.cap} is reached", capped=True)
            self._take_turn()
            pause: float | None = None
            try:
                found = self._client.post("/chat/completions", content)
            except Refused as error:
                self._ledger.settle(most, Usage(1))
                if error.status in _HOPELESS:
                    raise
                return Reply(None, "error", str(error))
            except Unavailable as error:
                if error.status is not None:
                    self._ledger.settle(most, Usage(1))  # a refused request uses no tokens
                pause = error.wait
                reply = Reply(None, "timeout" if error.late else "error", str(error))
            else:
                self._ledger.settle(most, _use(found, most))
                text = _text(found)
                if text is not None:
                    return Reply(text)
                reply = Reply(None, "error", "the judge's response is no chat completion")
            pause = min(self._settings.wait * 2**number, LONGEST_WAIT) if pause is None else pause
            if pause > LONGEST_WAIT or (number < self._settings.retries and self._over.wait(pause)):
                break
        return reply

    def _take_turn(self) -> None:
        """Wait until the next request may begin: they begin evenly spaced."""
        with self._turn:
            start = max(time.monotonic(), self._next)
            self._next = start + self._gap
        self._over.wait(max(0.0, start - time.monotonic()))


def _most_tokens(conversation: Conversation) -> int:
    """An upper bound of a conversation's tokens: no tokenizer makes more than one of a byte."""
    return sum(len(message["content"].encode()) + 64 for message in conversation)


def _use(found: dict[str, Any], most: Usage) -> Usage:
    """Return the usage that a response reports, or the upper bound ``most`` where it reports none."""
    usage = found.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    known = [count for count in counts if type(count) is int and 0 <= count <= _MOST_TOKENS]
    return Usage(1, *known) if len(known) == 2 else most


def _text(found: dict[str, Any]) -> str | None:
    """Return the reply, "" where it was cut off or is empty; None where the response is no completion."""
    try:
        choice = found["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    if text is not None and not isinstance(text, str):
        return None
    return "" if finish == "length" else text or ""
