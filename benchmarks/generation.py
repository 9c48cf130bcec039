"""Tokens a CPU second of the embedded generator beside ``transformers.generate``, on one core of a CPU.

    python -m benchmarks.generation [--model DIRECTORY] [--only NAME...]

Answers to prompts of 16 to 48 tokens ("short") and of 440 to 500 ("long"), at temperature 1: one row, one group of
eight, and eight groups of eight, for random models of 0.85M parameters (vocabulary 512) and of 42M (32,000), and for a
real one where ``--model`` names it. "fixed": all answers as long as the limit. "ragged": they end by one of a
forty-eighth of the vocabulary; ``generate`` gets the same lengths row by row, since with draws of its own it would have
other work.

``generate`` gets one left-padded batch with each prompt repeated, with its dynamic and with its static cache; the ratio
is to the faster of the two in each round. Both sides take turns, after one round to warm up; seconds are those of the
process's one thread. Writes results/generation.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM, StoppingCriteria, StoppingCriteriaList

from align.core.generation.decode import Decoder
from align.core.generation.generator_base import Request
from align.schemas.run import Sampling
from benchmarks.figures import RESULTS, Figure, figure, ratios, show, write
from benchmarks.workload import qwen2

GROUP = 8
NEW = {"0.85M": 64, "42M": 32}
"""Tokens of the longest answer; of a model from a directory 24."""
SHORT = [(rows, "short", stops) for rows in (1, 8, 64) for stops in ("fixed", "ragged") if rows > 1 or stops == "fixed"]
CASES = {
    "0.85M": [*SHORT, (8, "long", "fixed"), (64, "long", "fixed")],
    "42M": [(1, "short", "fixed"), (8, "short", "fixed"), (64, "short", "fixed"), (64, "short", "ragged")],
    "real model": [(1, "short", "fixed"), (8, "short", "fixed")],
}


class Lengths(StoppingCriteria):
    """Ends each row at a length of its own. lengths_B: tokens of prompt and answer."""

    def __init__(self, lengths_B: torch.Tensor) -> None:
        self.lengths_B = lengths_B

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return True for each row that is as long as it shall be."""
        return input_ids.shape[1] >= self.lengths_B


def network_of(name: str, directory: str | None) -> Any:
    """Return a random model of a shape, or the one in the directory."""
    if name not in NEW:
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    torch.manual_seed(0)
    return Qwen2ForCausalLM(qwen2(name.lower())).eval()


def by_align(network: Any, requests: list[Request], ends: tuple[int, ...], new: int) -> tuple[list[int], float]:
    """Return the lengths of all answers, and the seconds."""
    decoder = Decoder(network, None, ends, 2048, 65_536)  # type: ignore[arg-type]  # no stop strings, no tokenizer
    started = time.process_time()
    groups = decoder.generate(requests, Sampling(max_completion_length=new))
    seconds = time.process_time() - started
    return [len(sample.tokens) for group in groups for sample in group], seconds


@torch.no_grad()
def by_transformers(network: Any, requests: list[Request], lengths: list[int], new: int, cache: str) -> float:
    """Return the seconds for answers of these lengths."""
    started = time.process_time()
    prompts = [request.prompt for request in requests for _ in request.seeds]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p.tolist() for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    network.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        max_new_tokens=new,
        pad_token_id=0,
        eos_token_id=None,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        cache_implementation=cache,
        stopping_criteria=StoppingCriteriaList([Lengths(torch.tensor(lengths) + width)]),
    )
    return time.process_time() - started


def compare(name: str, network: Any, figures: dict[str, Figure], rounds: int) -> None:
    """Measure all cases of one model; the results are written after each."""
    new, draws = NEW.get(name, 24), np.random.default_rng(0)
    network.generation_config.eos_token_id = None
    for rows, prompt, stops in CASES[name]:
        low, high = (16, 49) if prompt == "short" else (440, 501)
        group = min(GROUP, rows)
        prompts = [draws.integers(3, 250, draws.integers(low, high)).astype(np.int32) for _ in range(rows // group)]
        ends = tuple(range(3, 3 + network.config.vocab_size // 48)) if stops == "ragged" else ()
        speeds: dict[str, list[float]] = {"align": [], "generate": []}
        for turn in range(rounds + 1):
            # Other seeds in each round: the lengths of few rows are luck.
            seeds = [tuple(1000 * turn + group * i + k for k in range(group)) for i in range(len(prompts))]
            requests = [Request(p, s) for p, s in zip(prompts, seeds, strict=True)]
            lengths, seconds = by_align(network, requests, ends, new)
            theirs = min(by_transformers(network, requests, lengths, new, cache) for cache in ("dynamic", "static"))
            if turn:
                speeds["align"].append(sum(lengths) / seconds)
                speeds["generate"].append(sum(lengths) / theirs)
        case = f"{name}, {rows} rows, {prompt} prompts, {stops}"
        for side, values in speeds.items():
            figures[f"{case}: {side}"] = figure(values, "tokens/CPU s", better="higher", absolute=True)
        figures[f"{case}: ratio"] = figure(ratios(speeds["align"], speeds["generate"]), "x", better="higher")
        print(show({key: value for key, value in figures.items() if key.startswith(case)}), flush=True)
        write(RESULTS / "generation.json", "python -m benchmarks.generation", figures, {"group": GROUP})


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a real model to measure too")
    parser.add_argument("--only", nargs="+", default=list(NEW), help="shapes to measure")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the one to warm up")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Figure] = {}
    for name in given.only:
        compare(name, network_of(name, None), figures, given.rounds)
    if given.model:
        compare("real model", network_of("real model", given.model), figures, given.rounds)


if __name__ == "__main__":
    main()
