"""A vLLM server that all ranks use over HTTP: started here, or running already.

Each weight update ends with a label of its own, which vLLM puts on every answer drawn from those weights. An answer
with another label (the server was restarted, or somebody else sent weights) never counts.
"""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from align import AlignError, Sample
from align.files import sha256
from align.generators import Floats, Interrupt, Tokens
from align.http import Client, Failed, secret
from align.plugins.generators.vllm.arguments import SCORING, VLLMConfig
from align.plugins.generators.vllm.child_server import BY_HAND, NCCL, ChildServer
from align.plugins.generators.vllm.weights import adapter_of, adapter_tensors, checkpoint_tensors, save_adapter
from align.processes import all_gather_objects, rank

if TYPE_CHECKING:
    from align.models import Policy

FIRST = "default"
"""The label of the weights that a server began with."""
SHARD = 2**31
"""Bytes of weights in one file."""
WHERE = "rollout.generator"


class ServerEngine:
    """The client of a server: samples from it, and sends it weights. Rank 0 starts it and sends; all ranks sample."""

    def __init__(self, config: VLLMConfig, arguments: Mapping[str, Any]) -> None:
        self.config, self.timeout, self.label = config, config.timeout, FIRST
        self.adapter: str | None = None  # the name that the server knows the last one by: its label
        self.launched: ChildServer | None = None
        self.sender: Any = None
        url, key, trouble = config.url, None, None
        if url is not None:
            key = secret(config.key_env, config.key_file)
        elif rank() == 0:
            try:
                self.launched = ChildServer(config, arguments)
                url, key = self.launched.url, self.launched.key
            except AlignError as error:
                trouble = error
        if config.url is None:
            url, key, failed = all_gather_objects((url, key, None if trouble is None else str(trouble)))[0]
            if failed is not None:
                raise trouble or AlignError(failed, where=WHERE)
        assert url is not None
        self.client = Client(url, key=key, timeout=self.timeout, retries=1)
        self.once = Client(url, key=key, timeout=self.timeout, retries=0)
        if config.url is not None:
            self._check_can_follow()

    def answers(
        self,
        prompts: Sequence[Tokens],
        params: Sequence[Mapping[str, Any]],
        stop: Callable[[], bool],
        finished: Callable[[int, Sample], None],
    ) -> None:
        """Sample a completion of each prompt; ``finished`` is called with its number and it, as each is finished.

        Raises AlignError with the server's own message, at the latest after ``timeout``.
        """

        def read(number: int, reply: dict[str, Any]) -> None:
            choice = reply["choices"][0]
            if choice["finish_reason"] not in ("stop", "length"):
                raise AlignError(f"the vLLM server ended an answer with {choice['finish_reason']!r}", where=WHERE)
            logp = [entry["logprob"] for entry in choice["logprobs"]["content"]]
            tokens = np.array(choice["token_ids"], np.int32)
            finished(number, Sample(tokens, np.array(logp, np.float32), choice["finish_reason"]))

        self._request(prompts, params, stop, read)

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """See ``Generator.logp``."""
        texts = [np.concatenate(pair) for pair in sequences]
        found: dict[int, Floats] = {}

        def read(number: int, reply: dict[str, Any]) -> None:
            answer = sequences[number][1]
            entries = reply["prompt_logprobs"][-len(answer) :]
            logp = [entry[str(int(token))]["logprob"] for entry, token in zip(entries, answer, strict=True)]
            found[number] = np.array(logp, np.float32)

        self._request(texts, [SCORING] * len(texts), lambda: False, read)
        return [found[number] for number in range(len(sequences))]

    def sync(self, policy: Policy, version: int, adapter: bool) -> None:
        """Send the policy's weights, or its adapter alone; all of it is there and checked before any of it is taken."""
        label = all_gather_objects(f"{secrets.token_hex(8)}-{version}")[0]
        self.label = ""  # whatever fails from here on, no answer counts
        failed: AlignError | None = None
        if adapter:
            failed = self._write_adapter(policy, label)
        elif self.config.weights == "nccl":
            self._send(policy, label)
        else:
            failed = self._write(policy, label)
        troubles = all_gather_objects(None if failed is None else str(failed))
        if failed is not None:
            raise failed
        # Every rank must stop where one has failed: the others would wait for it at the next collective call.
        if elsewhere := [trouble for trouble in troubles if trouble is not None]:
            raise AlignError(elsewhere[0], where=WHERE)
        self.label, self.adapter = label, label if adapter else None

    def close(self) -> None:
        """Stop the server if it was started here."""
        if self.sender is not None:
            self.sender.shutdown()
        for client in ("client", "once"):
            if hasattr(self, client):
                getattr(self, client).close()
        if self.launched is not None:
            self.launched.close()
        self.sender = self.launched = None

    # --- requests ----------------------------------------------------------------------------------------------------

    def _request(
        self,
        prompts: Sequence[Tokens],
        params: Sequence[Mapping[str, Any]],
        stop: Callable[[], bool],
        finished: Callable[[int, dict[str, Any]], None],
    ) -> None:
        """Send all requests at once, which the server queues; call ``finished`` with the number and each reply."""
        model = {} if self.adapter is None else {"model": self.adapter}
        futures: dict[Future[dict[str, Any]], int] = {
            self.client.submit(
                "POST",
                "/inference/v1/generate",
                {"token_ids": prompt.tolist(), "sampling_params": dict(each), **model},
                timeout=None if len(prompts) == 1 else self.timeout * len(prompts),  # they wait for each other
            ): number
            for number, (prompt, each) in enumerate(zip(prompts, params, strict=True))
        }
        pending, alive = set(futures), time.monotonic()
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    self._checked(future.result())
                    finished(futures[future], future.result())
                    alive = time.monotonic()
                if stop():
                    raise Interrupt
                if time.monotonic() - alive > self.timeout:
                    raise AlignError(f"finished no answer within {self.timeout:g} s", where=self.client.base_url)
        except AlignError as error:
            raise self._with_log(error) from None
        finally:
            for future in pending:
                future.cancel()

    def _checked(self, reply: dict[str, Any]) -> None:
        """Raise AlignError for an answer that is not from the weights that were sent last."""
        try:
            choice = reply["choices"][0]
            spans = choice["weight_versions"]
            labels = {span["version"] for span in spans}
            _ = choice["token_ids"], choice["finish_reason"]
        except (KeyError, IndexError, TypeError):
            raise AlignError(f"answered in an unknown form: {str(reply)[:200]}", "use vLLM 0.32") from None
        if labels != {self.label}:
            raise AlignError(
                f"answers from weights labelled {', '.join(sorted(labels))}; the last that were sent are {self.label}: "
                "it was restarted, or somebody else uses it",
                "resume the run: it begins by sending all weights",
                where=self.client.base_url,
            )

    def _with_log(self, error: AlignError) -> AlignError:
        """Return the error with the last messages of the server, where it was started here."""
        words = None if self.launched is None else self.launched.last_words()
        if words is None:
            return error
        return AlignError(f"{error.problems[0].what}\n    {words}", error.problems[0].fix, where=self.client.base_url)

    # --- weights -----------------------------------------------------------------------------------------------------

    def _check_can_follow(self) -> None:
        """Raise AlignError where a server that runs already lacks the routes that weight updates need."""
        nccl = f" \\\n    {shlex.join(NCCL)}" if self.config.weights == "nccl" else ""
        try:
            self.label = str(self.client.get("/weight_info")["weight_version"])
        except (Failed, KeyError) as error:
            what = error.problems[0].what if isinstance(error, Failed) else "does not say which weights it has"
            raise AlignError(
                what, f"it must have been started with\n    {BY_HAND}{nccl}", where=str(self.config.url)
            ) from None

    def _write(self, policy: Policy, label: str) -> AlignError | None:
        """Weights by way of files. Every rank gathers; rank 0 writes, and has them checked and taken."""
        shards = _shards(policy)
        if rank() != 0:
            for _ in shards:
                pass
            return None

        def write(directory: Path) -> None:
            for number, shard in enumerate(shards):
                save_file(shard, directory / f"{number:05d}.safetensors")

        failed = self._by_files("weights", label, write, "align_load")
        for _ in shards:  # what a failure left: the other ranks wait for this one to gather it
            pass
        return failed

    def _write_adapter(self, policy: Policy, label: str) -> AlignError | None:
        """Send the adapter by way of files, which rank 0 writes; the server knows it by the label.

        Every rank gathers.
        """
        config, tensors = adapter_of(policy), adapter_tensors(policy)
        assert config is not None
        if rank() != 0:
            return None

        def load(directory: Path) -> None:
            self._confirmed("/v1/load_lora_adapter", {"lora_name": label, "lora_path": str(directory)})
            if self.adapter is not None:
                self._confirmed("/v1/unload_lora_adapter", {"lora_name": self.adapter})

        return self._by_files("adapter", label, partial(save_adapter, config, tensors), "align_verify", load)

    def _by_files(
        self,
        what: str,
        label: str,
        write: Callable[[Path], None],
        method: str,
        load: Callable[[Path], None] = lambda directory: None,
    ) -> AlignError | None:
        """Have the server take files that ``write`` puts into a directory; return what went wrong.

        method: of the worker extension, which is given the directory and the files' checksums. load: called after it.
        Until all is done the server's answers carry the label ``none``.
        """
        directory = None
        try:
            directory = Path(tempfile.mkdtemp(prefix=f"align-{what}-", dir=self.config.exchange))
            write(directory)
            manifest = {path.name: sha256(path) for path in sorted(directory.iterdir())}
            self.client.post("/update_weight_version", {"new_version": "none"})
            arguments = [str(directory), json.dumps(manifest)]
            self.client.post("/collective_rpc", {"method": method, "args": arguments})
            load(directory)
            if not self.client.post("/reset_prefix_cache").get("success"):
                return AlignError("did not drop its prefix cache", where=self.client.base_url)
            self.client.post("/update_weight_version", {"new_version": label})
        except AlignError as error:
            return self._with_log(error)
        except OSError as error:
            return AlignError(f"the {what} could not be written: {error}", "give exchange a larger disk", where=WHERE)
        finally:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
        return None

    def _confirmed(self, path: str, content: Mapping[str, str]) -> None:
        """Post to a route that vLLM confirms in plain text, which the client takes for a failure."""
        try:
            self.once.post(path, content)
        except Failed as reply:
            if not reply.text.startswith("Success"):
                raise

    def _send(self, policy: Policy, label: str) -> None:
        """Weights by vLLM's own transfer, from GPU to GPU. Written to its documentation, and never run."""
        from align.plugins.generators.vllm.transfer import Sender

        self.sender = self.sender or Sender(self.client)
        self.sender.send(policy, label)


def _shards(policy: Policy) -> Iterator[dict[str, Tensor]]:
    """The policy's tensors on the CPU, in portions of at most ``SHARD`` bytes (or one tensor)."""
    held: dict[str, Tensor] = {}
    size = 0
    for name, tensor in checkpoint_tensors(policy):
        here = tensor.detach().cpu().contiguous()
        if held and size + here.nbytes > SHARD:
            yield held
            held, size = {}, 0
        held[name] = here
        size += here.nbytes
    if held:
        yield held
