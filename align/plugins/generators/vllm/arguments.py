"""The settings of the vLLM generator, and the arguments that vLLM is given for them.

Apart from the generator, since the engine in this process and the server are made from them and must not import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from align import Generator, ModelHandle
from align.settings import Sampling


class VLLMConfig(Generator.Config):
    """Settings of the vLLM generator in the run file."""

    mode: Literal["process", "server"] = "process"
    """``process``: an engine in the trainer's own process, one for each rank. ``server``: one or more ``vllm serve``
    that all ranks ask, started here on free ports of this machine, or those at ``url``."""
    url: str | list[str] | None = None
    """server only: the address of one that runs already, or a list of them (docs/vllm.md says how they must have been
    started). Prompts are shared among them."""
    servers: PositiveInt = 1
    """server only, without ``url``: servers that are started here, each on GPUs of its own where there are enough."""
    restarts: NonNegativeInt = 3
    """server only, without ``url``: times in the run that a server which ended or hangs is started again, all together.
    It gets the current weights before its next prompt."""
    key_env: str | None = None
    """With ``url``: the environment variable that holds the servers' API key."""
    key_file: str | None = None
    """With ``url``: the file that holds the servers' API key."""
    python: str | None = None
    """server only: an interpreter that has both vllm and align; default: this one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The engine's weights; auto: the dtype of the policy's."""
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
    weights: Literal["files", "nccl", "ipc"] = "files"
    """server only, how weights get there. ``files``: safetensors in ``exchange``, by checksum. ``nccl``: vLLM's
    weight transfer from GPU to GPU. ``ipc``: the same to a server on the trainer's own GPU. Neither is measured."""
    lora: Literal["auto", "adapter", "merged"] = "auto"
    """The way a LoRA adapter is sent. ``merged``: into all weights. ``adapter``: by itself, unmerged, or the run stops.
    ``auto``: by itself where vLLM can and the sync gate agrees, else merged; for a server at ``url`` merged."""
    exchange: str | None = None
    """With ``files``: a directory that trainer and server both see; default: a private one of this machine."""
    start_timeout: PositiveFloat = 1200.0
    """Seconds for a server to start, loading and compiling included."""
    timeout: PositiveFloat = 300.0
    """Seconds in which a server must finish a weight update, or at least one answer; also those that a phase waits for
    servers at ``url`` where none is left."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Further engine arguments by vLLM's own names (``block_size: 32``)."""

    @property
    def urls(self) -> list[str]:
        """The addresses of servers that run already."""
        return [self.url] if isinstance(self.url, str) else list(self.url or ())


def is_here(url: str) -> bool:
    """Return True for an address of this machine itself."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def engine_arguments(config: VLLMConfig, handle: ModelHandle) -> dict[str, Any]:
    """Return the arguments that vLLM is started with, by its own names of them."""
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
        "logprobs_mode": "processed_logprobs",  # of the distribution sampled from; raw ones would leave out temperature
        "generation_config": "vllm",  # else the model's own sampling defaults would mix in
        "seed": 0,
    }
    kv_cache = config.kv_cache or (None if torch.cuda.is_available() else 1.0)
    if kv_cache is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache * 2**30)
    return arguments | config.engine


def sampling_params(sampling: Sampling, ends: Sequence[int], seed: int) -> Mapping[str, Any]:
    """Return the sampling parameters of one completion, by vLLM's names of them."""
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
