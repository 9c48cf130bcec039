"""Tokens a CPU second of the embedded generator beside transformers' own generation and vLLM, on CPU.

    ALIGN_VLLM_PYTHON=.../python python benchmarks/generation.py

Groups of eight answers to prompts of 16 to 48 tokens, at temperature 1, on one core, for two random models: 0.9M
parameters with a vocabulary of 512, and 42M with one of 32,000. Twice each: all answers as long as the limit, and with
lengths that end by a stop token (one of the vocabulary's 1/48: a mean of some 40 tokens), where whoever lets finished
answers leave gains. Every way runs once to warm up; then the ways take turns, and what is told is the median over the
rounds, and of the ratio to transformers within each round, since a shared machine changes its speed; seconds are those
that the one thread had a core, since others may use the machine too. vLLM runs in its own interpreter, engine started
beforehand, one request for each answer (prefix caching shares the prompts), without seeds of their own, which its CPU
backend cannot keep while prompts are read in pieces.
Writes results/generation.json and fails unless local is faster than transformers everywhere.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from align.core.generation.decode import Decoder
from align.core.generation.generator_base import Request
from align.schemas.run import Sampling

ROUNDS, GROUP = 3, 8
MODELS = {
    "0.9M": ({"vocab_size": 512, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4}, 4, 16, 96),
    "42M": ({"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 3}, 8, 8, 64),
}
"""Config, heads, prompts, longest answer."""

VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
path, most = sys.argv[1], int(sys.argv[2])
engine = LLM(path, dtype="float32", max_model_len=512, seed=0, skip_tokenizer_init=True, max_num_seqs=256)
print("READY", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    prompts = [{"prompt_token_ids": p} for p in asked["prompts"] for _ in range(asked["group"])]
    settings = [SamplingParams(temperature=1.0, max_tokens=most, logprobs=0, detokenize=False,
                               stop_token_ids=asked["ends"], ignore_eos=True) for _ in prompts]
    engine.reset_prefix_cache()
    started = time.process_time()
    outputs = engine.generate(prompts, settings, use_tqdm=False)
    seconds = time.process_time() - started
    print("DONE", sum(len(o.outputs[0].token_ids) for o in outputs), seconds, flush=True)
"""

Way = Callable[[list[Any], list[int]], tuple[int, float]]
"""Prompts and end tokens to the tokens made and the CPU seconds taken."""


def local(network: Any, most: int) -> Way:
    """align's."""

    def generate(prompts: list[Any], ends: list[int]) -> tuple[int, float]:
        decoder = Decoder(network, None, tuple(ends), 512, 32_768)  # type: ignore[arg-type]  # no stop string, no tokenizer
        requests = [Request(p, tuple(range(GROUP * i, GROUP * (i + 1)))) for i, p in enumerate(prompts)]
        started = time.process_time()
        groups = decoder.generate(requests, Sampling(max_completion_length=most))
        return sum(len(s.tokens) for g in groups for s in g), time.process_time() - started

    return generate


def by_transformers(network: Any, most: int) -> Way:
    """``generate`` with each prompt repeated, all in one left-padded batch, log-probabilities from its scores."""

    @torch.no_grad()
    def generate(prompts: list[Any], ends: list[int]) -> tuple[int, float]:
        started = time.process_time()
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p.tolist() for p in prompts for _ in range(GROUP)])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts for _ in range(GROUP)])
        out: Any = network.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            max_new_tokens=most,
            pad_token_id=0,
            top_k=0,
            eos_token_id=ends or None,
        )
        seconds = time.process_time() - started
        answers = out[:, width:]
        ended = torch.isin(answers, torch.tensor(ends)).int() if ends else torch.zeros_like(answers)
        before = ended.cumsum(1) - ended
        return int((before == 0).sum()), seconds

    return generate


@contextmanager
def by_vllm(python: str, network: Any, most: int) -> Iterator[Way]:
    """The real engine, in another process."""
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as directory:
        network.save_pretrained(directory)
        command = [python, "-P", "-c", VLLM, directory, str(most)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, env=os.environ | settings, text=True, **pipes) as process:
            assert process.stdin and process.stdout

            def until(word: str) -> list[str]:
                assert process.stdout
                for line in process.stdout:
                    if line.startswith(word):
                        return str(line).split()
                raise RuntimeError("vLLM ended")

            def generate(prompts: list[Any], ends: list[int]) -> tuple[int, float]:
                assert process.stdin
                asked = {"prompts": [p.tolist() for p in prompts], "group": GROUP, "ends": ends}
                process.stdin.write(json.dumps(asked) + "\n")
                process.stdin.flush()
                _, tokens, seconds = until("DONE")
                return int(tokens), float(seconds)

            until("READY")
            yield generate
            process.stdin.close()


def compare(name: str, python: str | None) -> dict[str, Any]:
    """Every way on one model."""
    shape, heads, count, most = MODELS[name]
    torch.manual_seed(0)
    given: dict[str, Any] = {**shape, "num_attention_heads": heads, "num_key_value_heads": heads}
    make: Any = LlamaForCausalLM
    network = make(LlamaConfig(**given, max_position_embeddings=512)).eval()
    network.generation_config.eos_token_id = None
    draws = np.random.default_rng(0)
    prompts = [draws.integers(3, 500, draws.integers(16, 49)).astype(np.int32) for _ in range(count)]
    some = list(range(3, 3 + given["vocab_size"] // 48))
    ways: dict[str, Way] = {"transformers": by_transformers(network, most), "local": local(network, most)}
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in network.parameters()), "answers": count * GROUP}
    found["longest"] = most

    def turns() -> None:
        for case, ends in {"all as long": list[int](), "ended by a token": some}.items():
            speeds: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(ROUNDS + 1):
                for way, generate in ways.items():
                    tokens, seconds = generate(prompts, ends)
                    if number:
                        speeds[way].append(tokens / seconds)
            ratio = {
                way: median(a / b for a, b in zip(each, speeds["transformers"], strict=True))
                for way, each in speeds.items()
            }
            found[case] = {
                w: {"tokens_a_cpu_second": round(median(speeds[w])), "ratio": round(ratio[w], 2)} for w in ways
            }
            print(name, case, found[case], flush=True)

    if python is None:
        turns()
    else:
        with by_vllm(python, network, most) as engine:
            ways["vllm"] = engine
            turns()
    return found


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    python = os.environ.get("ALIGN_VLLM_PYTHON")
    results: dict[str, Any] = {name: compare(name, python) for name in MODELS}
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if python:
        told = [python, "-c", "from importlib.metadata import version as v; import vllm; print(vllm.__version__)"]
        versions["vllm"] = subprocess.run(told, capture_output=True, text=True, check=True).stdout.split()[-1]
    told_all: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    told_all |= {"threads": 1, "rounds": ROUNDS, "group": GROUP, "versions": versions, "models": results}
    path = Path(__file__).parent / "results" / "generation.json"
    path.write_text(json.dumps(told_all, indent=1) + "\n")
    slower = [
        n for n, r in results.items() for case in r.values() if isinstance(case, dict) and case["local"]["ratio"] <= 1
    ]
    if slower:
        sys.exit(f"local is not faster than transformers with {', '.join(slower)}")


if __name__ == "__main__":
    main()
