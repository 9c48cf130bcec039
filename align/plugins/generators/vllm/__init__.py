"""vLLM as generator: an engine in this process, or a server beside it or elsewhere.

Prompts go in and answers come out as token ids, never as text that would have to be tokenised again. Every answer has
its own seed. Log-probabilities are of the distribution that was drawn from (``processed_logprobs``). After every phase
the policy's weights are sent, the prefix cache is dropped, and the sync gate (``core/online/sync_check.py``) compares
log-probabilities with the trainer's.

Measured on CPU with vLLM 0.32 (docs/vllm.md). Not measured, for want of a GPU: everything on CUDA, and ``weights:
nccl`` above all.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from align.core.generation.base import Floats, Generator, ModelHandle, Request, Sample, Tokens
from align.schemas.errors import AlignError
from align.schemas.run import Sampling

if TYPE_CHECKING:
    from align.core.models.policy import Policy
    from align.plugins.generators.vllm.process import Process
    from align.plugins.generators.vllm.server import Server

COLDEST = 0.01
"""vLLM samples at no lower temperature but 0."""


class VLLM(Generator):
    """Answers from vLLM."""

    name: ClassVar[str] = "vllm"

    class Config(Generator.Config):
        """Settings in the run file."""

        mode: Literal["process", "server"] = "process"
        """``process``: an engine in the trainer's own process, one for each rank. ``server``: one ``vllm serve`` that
        all ranks ask, started here on a free port of this machine, or the one at ``url``."""
        url: str | None = None
        """server only: one that runs already (docs/vllm.md says how it must have been started)."""
        key_env: str | None = None
        """With ``url``: the environment variable that holds the server's API key."""
        key_file: str | None = None
        """With ``url``: the file that holds the server's API key."""
        python: str | None = None
        """server only: an interpreter that has both vllm and align; default: this one."""
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
        """Of the engine's weights; auto: what the policy's are held in."""
        context: PositiveInt | None = None
        """Most tokens of prompt and answer together; default: what the run needs."""
        gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.3
        """Share of a GPU's memory that the engine may take; the trainer needs the rest."""
        kv_cache: PositiveFloat | None = None
        """GiB for keys and values. Default: on CPU 1, on a GPU what ``gpu_memory_utilization`` leaves."""
        enforce_eager: bool = True
        """Neither compile nor capture graphs: starts in seconds and samples more slowly."""
        tensor_parallel: PositiveInt = 1
        """server only: devices that share the model."""
        weights: Literal["files", "nccl"] = "files"
        """server only, how weights get there. ``files``: safetensors in ``exchange``, by checksum. ``nccl``: vLLM's
        weight transfer from GPU to GPU (not measured)."""
        exchange: str | None = None
        """With ``files``: a directory that trainer and server both see; default: a private one of this machine."""
        start_timeout: PositiveFloat = 1200.0
        """Seconds for a server to start, loading and compiling included."""
        timeout: PositiveFloat = 300.0
        """Seconds in which a server must finish a weight update, or at least one answer."""
        engine: dict[str, Any] = Field(default_factory=dict)
        """Further engine arguments by vLLM's own names (``block_size: 32``)."""

    config: Config
    handle: ModelHandle | None = None
    started: Process | Server | None = None

    def open(self, handle: ModelHandle) -> None:
        """Check the settings. The engine starts when it is first needed: by then the trainer's ranks have joined."""
        self._check()
        self.handle = handle

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_token: Callable[[int, int, int], None] | None = None,
    ) -> list[list[Sample]]:
        """See ``Generator``; ``heard`` is told whole answers. A temperature in (0, 0.01) is refused."""
        if 0 < sampling.temperature < COLDEST:
            raise AlignError(f"is {sampling.temperature:g}; vLLM knows 0 and {COLDEST:g} or more", where="temperature")
        engine, ends = self.engine, self._subject.ends
        flat = [(number, seed) for number, request in enumerate(requests) for seed in request.seeds]
        prompts = [requests[number].prompt for number, _ in flat]
        found = engine.answers(prompts, [sampling_params(sampling, ends, seed) for _, seed in flat], stop)
        samples: list[list[Sample]] = [[] for _ in requests]
        for (number, _), sample in zip(flat, found, strict=True):
            if on_token is not None:
                for token in sample.tokens.tolist():
                    on_token(number, len(samples[number]), token)
            samples[number].append(sample)
        return samples

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """See ``Generator``. What is cached of prompts is not read."""
        return self.engine.logp(sequences)

    def sync(self, policy: Policy, version: int) -> None:
        """See ``Generator``."""
        self.engine.sync(policy, version)

    def close(self) -> None:
        """Stop the engine, or the server that was started here."""
        if self.started is not None:
            self.started.close()
        self.started = self.handle = None

    @property
    def engine(self) -> Process | Server:
        """The engine, or the server's client; started now if it was not. Raises AlignError with vLLM's own words."""
        if self.started is None:
            arguments = engine_arguments(self.config, self._subject)
            if self.config.mode == "process":
                from align.plugins.generators.vllm.process import Process

                self.started = Process(self.config, arguments)
            else:
                from align.plugins.generators.vllm.server import Server

                self.started = Server(self.config, arguments)
        return self.started

    @property
    def _subject(self) -> ModelHandle:
        if self.handle is None:
            raise RuntimeError("the generator is not open")
        return self.handle

    def _check(self) -> None:
        server_only = {"url", "key_env", "key_file", "python", "tensor_parallel", "weights", "exchange"}
        given = sorted(self.config.model_fields_set & server_only)
        if self.config.mode == "process" and given:
            raise AlignError(f"{', '.join(given)}: only for a server", "set mode: server", where="rollout.generator")
        started = sorted(self.config.model_fields_set & {"python"})
        if self.config.url is not None and started:
            raise AlignError(f"{', '.join(started)}: not for a server that runs already", where="rollout.generator")
        if self.config.mode == "process" and importlib.util.find_spec("vllm") is None:
            raise AlignError("generator vllm needs vllm", "pip install 'align-llm[vllm]' (docs/vllm.md for CPU)")


def engine_arguments(config: VLLM.Config, handle: ModelHandle) -> dict[str, Any]:
    """What vLLM is started with, by the names of its engine arguments."""
    import torch

    dtype: str = config.dtype
    if dtype == "auto" and handle.policy is not None:
        dtype = str(next(handle.policy.parameters()).dtype).removeprefix("torch.")
    arguments: dict[str, Any] = {
        "model": str(handle.directory),
        "dtype": dtype,
        "max_model_len": config.context or handle.context,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enforce_eager": config.enforce_eager,
        "tensor_parallel_size": config.tensor_parallel,
        "trust_remote_code": handle.model.trust_remote_code,
        "logprobs_mode": "processed_logprobs",  # of the distribution drawn from; raw ones would leave out temperature
        "generation_config": "vllm",  # else the model's own sampling defaults would mix in
        "seed": 0,
    }
    kv_cache = config.kv_cache or (None if torch.cuda.is_available() else 1.0)
    if kv_cache is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache * 2**30)
    return arguments | config.engine


def sampling_params(sampling: Sampling, ends: Sequence[int], seed: int) -> Mapping[str, Any]:
    """What one answer is asked with, by the names of vLLM's sampling parameters."""
    return {
        "max_tokens": sampling.max_completion_length,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "stop": list(sampling.stop),
        "stop_token_ids": sorted({*ends, *sampling.stop_token_ids}),
        "ignore_eos": True,  # the ends above are all there are
        "detokenize": bool(sampling.stop),
        "seed": seed,
        "logprobs": 0,  # of the token drawn, and no others
    }


SCORING: Mapping[str, Any] = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
"""Sampling parameters that ask for the log-probabilities of a prompt's tokens."""
