"""What training takes, measured at the allocator, beside what ``align estimate`` says: formula and dry run.

    python benchmarks/memory.py

SFT, DPO, GRPO and PPO, each with models of 1M, 10M and 40M parameters, trained for three steps by align's own engine on
the CPU, each in a process of its own. What is measured is every allocation of torch's CPU allocator, as its profiler
records them, from the moment training starts, on top of the tensors that live then; two peaks, in optimizer steps and
between them (answering, for GRPO and PPO). Formula and dry run see the run file and the data, never the measurement.
Writes results/memory.json and fails unless both are within a tenth of what is measured, everywhere.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MODELS = {
    "1M": {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4},
    "10M": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8},
    "40M": {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 3},
}
ALGORITHMS = {"sft": {}, "dpo": {}, "grpo": {"num_generations": 4}, "ppo": {"num_generations": 1, "num_iterations": 2}}
STEPS, BATCH, MICRO, ANSWER, BAND = 3, 24, 2048, 48, 0.1
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "wind", "over", "sea", "is", "cold", "and", "blue", "five"]


def rows(algorithm: str, count: int = 96) -> list[dict[str, Any]]:
    """Rows of varied length, 40 to 160 tokens of the byte-level tokenizer."""
    dice = random.Random(0)
    made = []
    for _ in range(count):
        said = [" ".join(dice.choices(WORDS, k=dice.randint(4, 16))) for _ in range(3)]
        prompt = [{"role": "user", "content": said[0]}]
        answers = [[{"role": "assistant", "content": text}] for text in said[1:]]
        if algorithm == "sft":
            made.append({"messages": prompt + answers[0]})
        elif algorithm == "dpo":
            made.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
        else:
            made.append({"prompt": prompt, "solution": said[1]})
    return made


def prepared(home: Path, algorithm: str, size: str) -> Path:
    """A run file, its model and its rows."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.tiny import save_tiny

    save_tiny(
        home / "model",
        **MODELS[size],
        num_attention_heads=MODELS[size]["hidden_size"] // 32,
        num_key_value_heads=MODELS[size]["hidden_size"] // 64,
    )
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(algorithm)))
    run: dict[str, Any] = {
        "output": str(home / "run"),
        "model": {"path": str(home / "model")},
        "data": {"train": str(home / "rows.jsonl"), "dataset_num_proc": 1},
        "algorithm": {"type": algorithm, **ALGORITHMS[algorithm]},
        "train": {"max_steps": STEPS, "batch_size": BATCH, "micro_batch_tokens": MICRO},
        "checkpoint": {"save_steps": 1000},
        "devices": {"accelerator": "cpu", "count": 1},
    }
    if algorithm in ("grpo", "ppo"):
        run["rollout"] = {
            "rewards": [{"type": "length", "shape": "target", "target": 40}],
            "sampling": {"max_completion_length": ANSWER},
        }
    (home / "run.yaml").write_text(json.dumps(run))
    return home / "run.yaml"


def alive() -> int:
    """Bytes of all tensors that live."""
    import torch

    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def measure(home: Path, algorithm: str, size: str) -> dict[str, Any]:
    """One real run, watched from within: peaks of optimizer steps and of what is between them."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from align.core.config import run_file
    from align.core.training import stage
    from align.core.training.launch import train

    watch: dict[str, Any] = {"spans": []}

    class Watched(stage.AlignModule):  # type: ignore[name-defined,misc]
        """The engine's module, with an eye on the allocator."""

        def on_train_start(self) -> None:
            super().on_train_start()
            gc.collect()
            watch["start"] = alive()
            watch["profile"] = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            watch["profile"].start()

        def on_train_batch_start(self, *_: Any) -> None:
            watch["spans"].append([time.time_ns()])

        def on_train_batch_end(self, *_: Any) -> None:
            watch["spans"][-1].append(time.time_ns())

        def on_train_end(self) -> None:
            watch["profile"].stop()

    stage.AlignModule = Watched  # type: ignore[attr-defined]
    train(run_file.load(prepared(home, algorithm, size)), progress=False)
    events = [e for e in watch["profile"].profiler.kineto_results.events() if e.name() == "[memory]"]
    live, peaks = watch["start"], {"training": 0, "generation": 0}
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        inside = any(a <= event.start_ns() <= b for a, b in watch["spans"])
        ended = event.start_ns() > watch["spans"][-1][1]
        if not ended:
            phase = "training" if inside else "generation"
            peaks[phase] = max(peaks[phase], live)
    if algorithm not in ("grpo", "ppo"):
        del peaks["generation"]
    return {"peaks": peaks, "events": len(events), "torch": torch.__version__}


def predict(home: Path, algorithm: str, size: str) -> dict[str, Any]:
    """What formula and dry run say."""
    from align.api.estimating import estimate
    from align.core.config import run_file

    (found,) = estimate(run_file.load(prepared(home, algorithm, size)), dry_run=True).stages
    return {
        "formula": {phase: sum(parts.values()) for phase, parts in found.phases.items()},
        "dry_run": {phase: sum(parts.values()) for phase, parts in (found.counted or {}).items()},
        "parts": found.phases,
        "parameters": found.shape.params,
    }


def alone(what: str, algorithm: str, size: str) -> dict[str, Any]:
    """The same in a process of its own, with a cache of its own."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, what, algorithm, size, home]
        environment = {**os.environ, "ALIGN_CACHE": str(Path(home) / "cache"), "OMP_NUM_THREADS": "1"}
        told = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if told.returncode:
            raise SystemExit(told.stderr)
        found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
        return found


def main() -> None:
    """Measure, compare, write."""
    results: dict[str, Any] = {}
    wrong = []
    for size in MODELS:
        for algorithm in ALGORITHMS:
            seen, said = alone("measure", algorithm, size), alone("predict", algorithm, size)
            each: dict[str, Any] = {"parameters": said["parameters"]}
            for phase, peak in seen["peaks"].items():
                each[phase] = {"measured_mb": round(peak / 1e6, 2)}
                for way in ("formula", "dry_run"):
                    off = said[way][phase] / peak - 1
                    each[phase] |= {f"{way}_mb": round(said[way][phase] / 1e6, 2), f"{way}_off": round(off, 4)}
                    if abs(off) > BAND:
                        wrong.append(f"{algorithm} {size} {phase} {way}: {off:+.1%}")
            whole = max(seen["peaks"].values())
            each["peak"] = {
                "measured_mb": round(whole / 1e6, 2),
                **{f"{way}_off": round(max(said[way].values()) / whole - 1, 4) for way in ("formula", "dry_run")},
            }
            results.setdefault(algorithm, {})[size] = each
            print(algorithm, size, json.dumps(each), flush=True)
    import torch
    import transformers

    told = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "settings": {"steps": STEPS, "batch_size": BATCH, "micro_batch_tokens": MICRO, "max_tokens": ANSWER},
        "band": BAND,
        "outside": wrong,
        "runs": results,
    }
    (Path(__file__).parent / "results" / "memory.json").write_text(json.dumps(told, indent=1) + "\n")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        what, algorithm, size, home = sys.argv[1:]
        print(json.dumps({"measure": measure, "predict": predict}[what](Path(home), algorithm, size)))
    else:
        main()
