"""A vLLM engine in the trainer's own process."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from align import AlignError, Sample
from align.generators import Floats, Interrupt, Tokens
from align.plugins.generators.vllm.arguments import SCORING, VLLMConfig
from align.plugins.generators.vllm.weights import adapter_of, adapter_tensors, checkpoint_tensors, save_adapter
from align.processes import keep_random_state

if TYPE_CHECKING:
    from align.models import Policy

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the engine runs in a child, and weights must be sent to it
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else the trainer's threads are bound with the engine's
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class InProcessEngine:
    """One engine; see ``ServerEngine`` for the same thing over HTTP.

    Training must not change by it: random states, thread counts and the process group are restored after each call.
    """

    def __init__(self, config: VLLMConfig, arguments: Mapping[str, Any]) -> None:
        self.timeout = config.timeout
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.joined_before = dist.is_initialized()
        if self.joined_before and dist.get_world_size() > 1:  # the trainer's group is used; each rank is by itself
            arguments = {**arguments, "distributed_executor_backend": "external_launcher"}
        with _restored(), _vllm_errors("vLLM could not start"):
            from vllm import LLM

            self.llm: Any = LLM(**arguments, disable_log_stats=True)
        self.numbers = 0
        self.lora: Any = None

    def answers(
        self,
        prompts: Sequence[Tokens],
        params: Sequence[Mapping[str, Any]],
        stop: Callable[[], bool],
        finished: Callable[[int, Sample], None],
    ) -> None:
        """Sample a completion of each prompt; ``finished`` is called with its number and it, as each is finished."""

        def read(number: int, output: Any) -> None:
            (completion,) = output.outputs
            if completion.finish_reason not in ("stop", "length"):
                raise AlignError(f"vLLM ended an answer with {completion.finish_reason!r}", where="rollout.generator")
            tokens = np.array(completion.token_ids, np.int32)
            drawn = zip(completion.logprobs, completion.token_ids, strict=True)
            logp = [entry[token].logprob for entry, token in drawn]
            finished(number, Sample(tokens, np.array(logp, np.float32), completion.finish_reason))

        self._run(prompts, params, stop, read)

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """See ``Generator.logp``."""
        texts = [np.concatenate(pair) for pair in sequences]
        found: dict[int, Floats] = {}

        def read(number: int, output: Any) -> None:
            answer = sequences[number][1]
            entries = output.prompt_logprobs[-len(answer) :]
            logp = [entry[int(token)].logprob for entry, token in zip(entries, answer, strict=True)]
            found[number] = np.array(logp, np.float32)

        self._run(texts, [SCORING] * len(texts), lambda: False, read)
        return [found[number] for number in range(len(sequences))]

    def sync(self, policy: Policy, version: int, adapter: bool) -> None:
        """Load the policy's weights, or its adapter alone, and forget what was cached of the old ones."""
        with _restored(), _vllm_errors("vLLM could not take the weights"):
            if adapter:
                self._load_adapter(policy)
            else:
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": checkpoint_tensors(policy)})
            if not self.llm.reset_prefix_cache():
                raise AlignError("vLLM did not drop its prefix cache", where="rollout.generator")

    def _load_adapter(self, policy: Policy) -> None:
        """Replace the adapter. It passes through files, which vLLM reads before ``add_lora`` returns."""
        from vllm.lora.request import LoRARequest

        config, tensors = adapter_of(policy), adapter_tensors(policy)
        assert config is not None
        number = 1 if self.lora is None else self.lora.lora_int_id + 1
        with tempfile.TemporaryDirectory(prefix="align-adapter-") as directory:
            save_adapter(config, tensors, Path(directory))
            lora = LoRARequest(f"policy-{number}", number, directory)
            if not self.llm.llm_engine.add_lora(lora):
                raise AlignError("vLLM did not take the adapter", where="rollout.generator")
        self.lora = lora

    def close(self) -> None:
        """Give memory and process groups back."""
        llm, self.llm = self.llm, None
        if llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory, destroy_model_parallel

        with _restored():
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
            if self.joined_before:
                destroy_model_parallel()
            else:
                cleanup_dist_env_and_memory()

    def _run(
        self,
        prompts: Sequence[Tokens],
        params: Sequence[Mapping[str, Any]],
        stop: Callable[[], bool],
        finished: Callable[[int, Any], None],
    ) -> None:
        """Run requests to their end; ``finished`` is called with the number and the output of each."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        running = {str(self.numbers + i): i for i in range(len(prompts))}
        self.numbers += len(prompts)
        alive = time.monotonic()
        with _restored(), _vllm_errors("vLLM could not answer"):
            try:
                for name, prompt, each in zip(list(running), prompts, params, strict=True):
                    wanted = SamplingParams(**each, output_kind=RequestOutputKind.FINAL_ONLY)
                    engine.add_request(name, {"prompt_token_ids": prompt.tolist()}, wanted, lora_request=self.lora)
                while engine.has_unfinished_requests():
                    if stop():
                        raise Interrupt
                    for output in engine.step():
                        finished(running.pop(output.request_id), output)
                        alive = time.monotonic()
                    if time.monotonic() - alive > self.timeout:
                        raise AlignError(f"vLLM finished no answer within {self.timeout:g} s")
            except BaseException:
                engine.abort_request(list(running))
                raise


@contextmanager
def _restored() -> Iterator[None]:
    """Put back what vLLM changes in the process it lives in: random states, and the function that sets threads."""
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    local = os.environ.get("LOCAL_WORLD_SIZE")
    try:
        with keep_random_state():
            yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        if local is None:
            os.environ.pop("LOCAL_WORLD_SIZE", None)


@contextmanager
def _vllm_errors(what: str) -> Iterator[None]:
    """Raise vLLM's exceptions as AlignErrors that quote them."""
    try:
        yield
    except (AlignError, Interrupt):
        raise
    except Exception as error:
        raise AlignError(f"{what}: {error or type(error).__name__}", where="rollout.generator") from error
