"""One vLLM server as its clients see it: its address, the label of its weights, and the updates that it takes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align import AlignError
from align.generators import Floats, Tokens
from align.http import Client, Failed
from align.plugins.generators.vllm.arguments import SCORING
from align.plugins.generators.vllm.child_server import ChildServer

FIRST = "default"
"""The label of the weights that a server began with."""
BEGUN = "-begun"
"""The end of the label while weights are replaced."""
STRIKES = 3
"""Failures without an answer in between, after which a server is left alone until the next weights are sent."""
LOOK = 5.0
"""Seconds in which a server must say which weights it has."""
DEAF = 15.0
"""Seconds after a failure in which a server that was started here must say something, or is ended."""
GENERATE = "/inference/v1/generate"


class Stale(AlignError):
    """An answer from other weights than were sent last."""


@dataclass(frozen=True, slots=True)
class Update:
    """Weights, or an adapter, as files that any server may take until the next ones are sent.

    manifest: {file name: sha256}. method: of the worker extension, which is given directory and manifest.
    """

    label: str
    directory: Path
    manifest: Mapping[str, str]
    method: str
    adapter: bool


class Server:
    """A server, and the state of it that this rank knows. child: on rank 0, where it was started here."""

    def __init__(
        self, url: str, key: str | None, timeout: float, home: Path | None = None, child: ChildServer | None = None
    ) -> None:
        self.url, self.home, self.child = url, home, child
        self.client = Client(url, key=key, timeout=timeout, retries=1)
        self.once = Client(url, key=key, timeout=timeout, retries=0)
        self.label = FIRST
        self.adapter: str | None = None  # the name that requests give: the label of the update it came with
        self.loaded: str | None = None  # the adapter that rank 0 has had it load
        self.gate: tuple[Sequence[tuple[Tokens, Tokens]], list[Floats]] | None = None
        """The probe of the sync gate after the last update, and this server's answers."""
        self.out: AlignError | None = None
        """The reason for which this rank gives it no prompts now."""
        self.strikes, self.flying, self.answered = 0, 0, time.monotonic()
        self._look: Future[dict[str, Any]] | None = None
        self._looked = self._spoke = 0.0

    def begin(self, label: str, adapter: str | None) -> None:
        """Expect the weights of this label from now on; what failed before is forgiven."""
        self.label, self.adapter, self.gate, self.strikes = label, adapter, None, 0
        self.out = None

    def leave_out(self, why: AlignError) -> None:
        """Give it no prompts until ``is_back``."""
        if self.out is None:
            self.strikes += 1
            self._spoke = time.monotonic()
        self.out, self._looked = why, time.monotonic()

    def is_back(self) -> bool:
        """Look again, at most once a second and without waiting; True where it has the expected weights."""
        if self._look is None:
            if self.strikes < STRIKES and self.gone is None and time.monotonic() - self._looked > 1.0:
                self._look = self.once.submit("GET", "/weight_info", timeout=LOOK)
            return False
        if not self._look.done():
            return False
        found, self._look, self._looked = self._look, None, time.monotonic()
        with contextlib.suppress(Failed):
            label, self._spoke = found.result().get("weight_version"), time.monotonic()
            if label == self.label:
                self.out, self.answered = None, self._spoke
        return self.out is None

    def end_if_deaf(self) -> None:
        """End a server of ours that failed and has said nothing since: vLLM's may outlive its dead engine like that."""
        if self.out is None or self.child is None or self.child.process.poll() is not None:
            return
        # One that was started since is loading its model.
        if self.child.started < self._spoke and time.monotonic() - self._spoke > DEAF:
            self.child.process.terminate()

    @property
    def is_hopeless(self) -> bool:
        """True where it will not come back before the next weights are sent."""
        return self.gone is not None or self.strikes >= STRIKES

    @property
    def gone(self) -> str | None:
        """The last words of a server that was started here and is not started again; None for any other."""
        if self.home is None:
            return None
        try:
            return (self.home / "gone").read_text(encoding="utf-8")
        except OSError:
            return None

    def give_up(self, words: str) -> None:
        """Have all ranks know that it is not started again: they share this machine with it."""
        assert self.home is not None
        partial = self.home / "gone.part"
        partial.write_text(words, encoding="utf-8")
        partial.replace(self.home / "gone")

    def current_label(self) -> str:
        """Return the label of the weights that it has. Raises ``Failed``, KeyError where it does not know labels."""
        return str(self.once.get("/weight_info", timeout=LOOK)["weight_version"])

    def workers(self) -> int:
        """Return the number of devices that the server's engine runs on. Raises ``Failed``."""
        return int(self.once.get("/get_world_size", timeout=LOOK)["world_size"])

    def check(self, reply: dict[str, Any]) -> None:
        """Raise ``Stale`` for an answer that is not from the weights expected, AlignError for one of another form."""
        try:
            choice = reply["choices"][0]
            labels = {span["version"] for span in choice["weight_versions"]}
            _ = choice["token_ids"], choice["finish_reason"]
        except (KeyError, IndexError, TypeError):
            raise AlignError(f"answered in an unknown form: {str(reply)[:200]}", "use vLLM 0.32") from None
        if labels != {self.label}:
            raise Stale(
                f"answers from weights labelled {', '.join(sorted(labels))}; the last that were sent are {self.label}: "
                "it was restarted, or somebody else uses it",
                "resume the run: it begins by sending all weights",
                where=self.url,
            )

    def take(self, update: Update, check: Callable[[], None] = lambda: None) -> None:
        """Take an update. Until all is done and ``check`` has not raised, its answers carry another label."""
        self.client.post("/update_weight_version", {"new_version": update.label + BEGUN})
        arguments = [str(update.directory), json.dumps(update.manifest)]
        self.client.post("/collective_rpc", {"method": update.method, "args": arguments})
        if update.adapter and self.loaded != update.label:
            self._confirmed("/v1/load_lora_adapter", {"lora_name": update.label, "lora_path": str(update.directory)})
            before, self.loaded = self.loaded, update.label
            if before is not None:
                self._confirmed("/v1/unload_lora_adapter", {"lora_name": before})
        if not self.client.post("/reset_prefix_cache").get("success"):
            raise AlignError("did not drop its prefix cache", where=self.url)
        check()
        self.client.post("/update_weight_version", {"new_version": update.label})

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """Log-probabilities of answers, whatever weights they are from."""
        asked = [scoring_request(prompt, answer, self.adapter) for prompt, answer in sequences]
        replies = [self.once.post(GENERATE, each) for each in asked]
        return [scored(reply, answer) for reply, (_, answer) in zip(replies, sequences, strict=True)]

    def with_last_words(self, error: AlignError) -> AlignError:
        """Return the error with the last messages of the server, where it was started here."""
        words = self.gone or (None if self.child is None else self.child.last_words())
        problem = error.problems[0]
        if words is None or words in problem.what:
            return error
        return AlignError(f"{problem.what}\n    {words}", problem.fix, where=self.url)

    def close(self) -> None:
        """Close the connections, and stop the server if it was started here."""
        self.client.close()
        self.once.close()
        if self.child is not None:
            self.child.close()

    def _confirmed(self, path: str, content: Mapping[str, str]) -> None:
        """Post to a route that vLLM confirms in plain text, which the client takes for a failure."""
        try:
            self.once.post(path, content)
        except Failed as reply:
            if not reply.text.startswith("Success"):
                raise


def scoring_request(prompt: Tokens, answer: Tokens, adapter: str | None) -> dict[str, Any]:
    """Return the request for the log-probabilities of an answer's tokens."""
    return generate_request(np.concatenate([prompt, answer]), SCORING, adapter)


def generate_request(prompt: Tokens, params: Mapping[str, Any], adapter: str | None) -> dict[str, Any]:
    """Return the request for one completion. adapter: the name that the server knows it by."""
    model = {} if adapter is None else {"model": adapter}
    return {"token_ids": prompt.tolist(), "sampling_params": dict(params), **model}


def scored(reply: dict[str, Any], answer: Tokens) -> Floats:
    """Return the log-probabilities in the reply to ``scoring_request``."""
    entries = reply["prompt_logprobs"][-len(answer) :]
    logp = [entry[str(int(token))]["logprob"] for entry, token in zip(entries, answer, strict=True)]
    return np.array(logp, np.float32)
