"""vLLM as generator: an engine in this process, or servers next to it or elsewhere.

Prompts go in and answers come out as token ids, never as text that would have to be tokenised again. Every answer has
its own seed. Log-probabilities are of the distribution that was drawn from (``processed_logprobs``). After every phase
the policy's weights are sent, the prefix cache is dropped, and the sync gate (``core/online/sync_check.py``) compares
log-probabilities with the trainer's.

Measured on CPU with vLLM 0.32 (docs/vllm.md). Not measured, for want of a GPU: everything on CUDA, ``weights: nccl``
and ``weights: ipc`` above all.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from align import AlignError, Generator, ModelHandle, Request, Sample
from align.generators import CompletionGroups, Floats, Tokens
from align.plugins.generators.vllm.arguments import VLLMConfig, engine_arguments, is_here, sampling_params
from align.processes import rank
from align.settings import Sampling

if TYPE_CHECKING:
    from peft import LoraConfig

    from align.models import Policy
    from align.plugins.generators.vllm.process import InProcessEngine
    from align.plugins.generators.vllm.server import ServerEngine

COLDEST = 0.01
"""vLLM samples at no lower temperature but 0."""


class VLLM(Generator):
    """Answers from vLLM."""

    name: ClassVar[str] = "vllm"

    class Config(VLLMConfig):
        """Settings in the run file."""

    config: Config
    handle: ModelHandle | None = None
    started: InProcessEngine | ServerEngine | None = None
    _adapter: LoraConfig | None = None  # sent by itself; None: all weights are sent, an adapter merged into them

    @property
    def generates_in_background(self) -> bool:
        """True for a server; an engine in this process shares its random states and threads."""
        return self.config.mode == "server"

    @property
    def engines(self) -> Sequence[Generator]:
        """Each server in use, by itself."""
        if self.config.mode == "process":
            return (self,)
        from align.plugins.generators.vllm.server import ServerEngine

        engine = self.engine
        assert isinstance(engine, ServerEngine)
        views = []
        for server in engine.in_use or engine.servers:
            view = copy.copy(self)
            view.started = engine.only(server)
            views.append(view)
        return views

    @property
    def title(self) -> str:
        """The name, and the address where there is one server."""
        servers = getattr(self.started, "servers", [])
        return f"{self.name} at {servers[0].url}" if len(servers) == 1 else self.name

    def open(self, handle: ModelHandle) -> None:
        """Check the settings. The engine starts when it is first needed: by then the trainer's ranks have joined."""
        self._check()
        self.handle = handle
        self._adapter = self._adapter_to_send(handle)

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

        Raises AlignError for a temperature in (0, 0.01).
        """
        if 0 < sampling.temperature < COLDEST:
            raise AlignError(f"is {sampling.temperature:g}; vLLM knows 0 and {COLDEST:g} or more", where="temperature")
        engine, ends = self.engine, self._subject.ends
        flat = [(i, n) for i, request in enumerate(requests) for n in range(len(request.seeds))]
        prompts = [requests[i].prompt for i, _ in flat]
        params = [sampling_params(sampling, ends, requests[i].seeds[n]) for i, n in flat]
        groups = CompletionGroups(requests, on_group)

        def finished(place: int, sample: Sample) -> None:
            request, number = flat[place]
            if on_token is not None:
                for token in sample.tokens.tolist():
                    on_token(request, number, token)
            groups.add(request, number, sample)

        engine.answers(prompts, params, stop, finished)
        return groups.samples

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """See ``Generator``. Cached prompts are not read: the cache holds no log-probabilities."""
        return self.engine.logp(sequences)

    def sync(self, policy: Policy, version: int) -> None:
        """See ``Generator``. Where vLLM refuses an adapter, it is sent merged, unless ``lora: adapter``."""
        if self._adapter is not None:
            try:
                self.engine.sync(policy, version, adapter=True)
                return
            except AlignError as error:
                if not self.has_fallback:
                    raise
                self.fall_back(str(error))
        self.engine.sync(policy, version, adapter=False)

    @property
    def has_fallback(self) -> bool:
        """True while an adapter is sent by itself that may be sent merged."""
        return self._adapter is not None and self.config.lora == "auto"

    def fall_back(self, why: str) -> None:
        """Send the adapter merged from now on, to a new engine: one with room for adapters has its weights wrapped."""
        if rank() == 0:
            print(f"vLLM gets the adapter merged into the weights: {why}", file=sys.stderr)
        if self.started is not None:
            self.started.close()
        self.started = self._adapter = None

    def close(self) -> None:
        """Stop the engine, or the servers that were started here."""
        if self.started is not None:
            self.started.close()
        self.started = self.handle = None

    @property
    def engine(self) -> InProcessEngine | ServerEngine:
        """The engine, or the servers' client; started now if it was not. Raises AlignError with vLLM's own message."""
        if self.started is None:
            arguments = engine_arguments(self.config, self._subject)
            if self._adapter is not None:
                from align.plugins.generators.vllm.weights import lora_arguments

                arguments = lora_arguments(self._adapter) | arguments
            if self.config.mode == "process":
                from align.plugins.generators.vllm.process import InProcessEngine

                self.started = InProcessEngine(self.config, arguments)
            else:
                from align.plugins.generators.vllm.server import ServerEngine

                self.started = ServerEngine(self.config, arguments)
        return self.started

    @property
    def _subject(self) -> ModelHandle:
        if self.handle is None:
            raise RuntimeError("the generator is not open")
        return self.handle

    def _adapter_to_send(self, handle: ModelHandle) -> LoraConfig | None:
        """Return the adapter that is sent by itself, if any. Raises AlignError where that is wanted and cannot be."""
        wanted = self.config.lora
        if handle.policy is None or wanted == "merged" or (wanted == "auto" and self.config.url is not None):
            return None
        from align.plugins.generators.vllm.weights import adapter_fault, adapter_of

        adapter = adapter_of(handle.policy)
        fault = "" if adapter is None else adapter_fault(adapter)
        if fault and wanted == "adapter":
            raise AlignError(f"is adapter, and {fault}", "use auto or merged", where="rollout.generator.lora")
        return None if fault else adapter

    def _check(self) -> None:
        server_only = {"url", "servers", "restarts", "key_env", "key_file", "python", "tensor_parallel", "weights"}
        server_only.add("exchange")
        given = sorted(self.config.model_fields_set & server_only)
        if self.config.mode == "process" and given:
            raise AlignError(f"{', '.join(given)}: only for a server", "set mode: server", where="rollout.generator")
        if self.config.url is not None:
            self._check_urls()
        if self.config.mode == "process" and importlib.util.find_spec("vllm") is None:
            raise AlignError("generator vllm needs vllm", "pip install 'align-llm[vllm]' (docs/vllm.md for CPU)")

    def _check_urls(self) -> None:
        urls = self.config.urls
        if self.config.python is not None or self.config.servers > 1:
            raise AlignError("python, servers: not for a server that runs already", where="rollout.generator")
        if not urls or len({url.rstrip("/") for url in urls}) < len(urls):
            what = "names an address twice" if urls else "names no address"
            raise AlignError(what, where="rollout.generator.url")
        if self.config.weights == "ipc" and not all(map(is_here, urls)):
            what = "is ipc, which shares memory of one machine, and a server is elsewhere"
            raise AlignError(what, "use nccl or files", where="rollout.generator.weights")
