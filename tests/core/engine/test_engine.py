"""The engine around a step: what never reaches the weights, what a run leaves behind, what a second start does."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.core.algorithm.contract import Algorithm, LossOutput, LossTerm
from align.core.data.batch import Batch, MicroBatch
from align.core.engine import checkpoint, module
from align.core.models import precompute
from align.core.models.policy import Policy
from align.core.plugin_system.registry import registry
from align.core.training.check import check
from align.core.training.launch import train
from align.core.util.stopping import Interrupted
from align.schemas.errors import AlignError
from align.schemas.run import Run
from tests.core.runs import run_for, write_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def log(output: Path) -> list[dict[str, str]]:
    with open(output / "only" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def files(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_run_leaves_exactly_this(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    (result,) = train(run_for("sft", tiny_model_dir, rows, tmp_path / "run"), progress=False)
    saved = {
        f"only/checkpoints/step-000000{step}/{name}" for step in (16, 18) for name in ("state.pt", "MANIFEST.json")
    }
    exported = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files(tmp_path / "run") == saved | {f"only/export/{name}" for name in exported | {"chat_template.jinja"}} | {
        "run.yaml",
        "manifest.json",
        "only/stage.json",
        "only/metrics.csv",
        "only/data_report.json",
        "only/logs/rank-0.jsonl",
        "only/done.json",
    }
    assert result.metrics["val/loss"] < float(log(tmp_path / "run")[0]["val/loss"])
    model = AutoModelForCausalLM.from_pretrained(result.export)
    assert AutoTokenizer.from_pretrained(result.export).chat_template
    newest, _ = checkpoint.latest_valid(tmp_path / "run" / "only" / "checkpoints")
    assert newest is not None
    trained = checkpoint.load(newest)["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[f"policy.model.{name}"])


def test_a_finished_stage_is_skipped(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_for("sft", tiny_model_dir, write_rows("sft", tmp_path / "rows.jsonl"), tmp_path / "run")
    (first,) = train(run, progress=False)
    before = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in ("only/done.json", "only/metrics.csv")}
    assert train(run, progress=False) == [first]
    assert before == {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in before}


def test_other_settings_are_refused_with_the_difference(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    train(run_for("sft", tiny_model_dir, rows, tmp_path / "run"), progress=False)
    with pytest.raises(AlignError, match=r"train\.batch_size was 8, is 4"):
        train(run_for("sft", tiny_model_dir, rows, tmp_path / "run", train={"batch_size": 4}), progress=False)
    faster = run_for("sft", tiny_model_dir, rows, tmp_path / "run", train={"micro_batch_size": 8})
    assert train(faster, progress=False)  # changes speed only


def test_changed_data_is_refused_on_resume(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    run = run_for("sft", tiny_model_dir, rows, tmp_path / "run")
    train(run, progress=False)
    (tmp_path / "run" / "only" / "done.json").unlink()
    with pytest.raises(AlignError, match="holds an interrupted run, saved after step 18"):
        train(run, progress=False)
    write_rows("sft", rows, seed=1)
    with pytest.raises(AlignError, match=r"its data .*not what this run has"):
        train(run, resume=True, progress=False)


def test_a_strange_directory_is_left_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("all of it")
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    with pytest.raises(AlignError, match="holds something else than a run"):
        train(run_for("sft", tiny_model_dir, rows, tmp_path / "thesis"), progress=False)
    assert files(tmp_path / "thesis") == {"chapter1.tex"}


def test_a_rank_that_starts_before_rank_0_does_not_stop_the_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Under torchrun its sign of life may be the first file of the run directory."""
    sign = tmp_path / "run" / "only" / ".ranks" / "1.json"
    sign.parent.mkdir(parents=True)
    sign.write_text("{}")
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    assert train(run_for("sft", tiny_model_dir, rows, tmp_path / "run"), progress=False)


class Poisoned(Algorithm):
    """Learns as sft does, but the loss of one row is not finite."""

    name = "poisoned"
    paper = "none: a test"
    learns_from = ("text",)
    learning_rate = 1e-3
    poison = math.nan

    def loss(self, batch: Batch) -> LossOutput:
        """A sequence of exactly five scored tokens is the poisoned one."""
        factor_B = torch.where(batch.length_B == 5, self.poison, 1.0)
        return LossOutput([LossTerm(-batch.logp_T * batch.expand_to_tokens(factor_B), "token")], {})


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> type[Poisoned]:
    build = registry.build

    def with_poison(kind: str, choice: Any, *rest: Any) -> Any:
        return Poisoned(Poisoned.Config()) if choice.type == "poisoned" else build(kind, choice, *rest)

    monkeypatch.setattr(registry, "build", with_poison)
    return Poisoned


def poisoned_rows(path: Path) -> Path:
    """Twenty rows with one short answer each; row 13 has the one answer of five tokens."""
    rows = [{"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a"}]}] * 20
    rows[12] = {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "abcd"}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SHORT: dict[str, dict[str, Any]] = {
    "data": {"validation_fraction": 0.0},
    "train": {"num_train_epochs": 3, "batch_size": 4, "micro_batch_size": 1},
}


def finite(model: Path) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in AutoModelForCausalLM.from_pretrained(model).parameters())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nonfinite_stops_with_step_rows_and_checkpoint(
    poison: float, poisoned: type[Poisoned], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poisoned, "poison", poison)
    rows = poisoned_rows(tmp_path / "rows.jsonl")
    run = run_for("poisoned", tiny_model_dir, rows, tmp_path / "run", **SHORT, checkpoint={"save_steps": 1})
    with pytest.raises(AlignError) as caught:
        train(run, progress=False)
    text = str(caught.value)
    done = len(log(tmp_path / "run"))
    assert f"step {done + 1}" in text and "rows.jsonl:13" in text and "rows.jsonl:12" not in text
    assert (f"the last good checkpoint is of step {done}" if done else "no checkpoint") in text
    for step in checkpoint.steps(tmp_path / "run" / "only" / "checkpoints"):
        state = checkpoint.load(checkpoint.at(tmp_path / "run" / "only" / "checkpoints", step))["state_dict"]
        assert all(bool(torch.isfinite(value).all()) for value in state.values())


def test_nonfinite_is_skipped_and_counted_when_asked(
    poisoned: type[Poisoned], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Three epochs meet the row three times; the steps are logged as what they are and change nothing."""
    rows = poisoned_rows(tmp_path / "rows.jsonl")
    settings = SHORT | {
        "train": SHORT["train"] | {"on_nonfinite": "skip"},
        "checkpoint": {"save_steps": 1, "save_total_limit": 100},
    }
    (result,) = train(run_for("poisoned", tiny_model_dir, rows, tmp_path / "run", **settings), progress=False)
    written = log(tmp_path / "run")
    bad = [int(row["step"]) for row in written if row["loss"] == "nan"]
    assert len(bad) == 3 and written[bad[-1] - 1]["skipped"] == "3.0"
    assert finite(result.export)
    root = tmp_path / "run" / "only" / "checkpoints"

    def weights(step: int) -> dict[str, Tensor]:
        loaded: dict[str, Tensor] = checkpoint.load(checkpoint.at(root, step))["state_dict"]
        return loaded

    step = next(step for step in bad if step > 1)
    assert all(torch.equal(value, weights(step - 1)[name]) for name, value in weights(step).items())


@pytest.mark.parametrize(("rate", "save_steps"), [(0.05, 100), (0.05, 1), (1.0, 100)])
def test_early_stopping_and_the_best_export(rate: float, save_steps: int, tiny_model_dir: Path, tmp_path: Path) -> None:
    """A rate that is far too high makes the held-out loss rise: the run stops early and hands on its best step.

    Also where as many later checkpoints are made as are kept, and where every step is worse than the starting weights,
    which are not among those to choose from.
    """
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    run = run_for(
        "sft",
        tiny_model_dir,
        rows,
        tmp_path / "run",
        optimizer={"learning_rate": rate},
        schedule={"type": "constant", "warmup_steps": 0.0},
        train={"num_train_epochs": 20},
        validation={"eval_steps": 1, "early_stopping_patience": 3},
        checkpoint={"save_steps": save_steps, "export": "best"},
    )
    (result,) = train(run, progress=False)
    held_out = {int(row["step"]): float(row["val/loss"]) for row in log(tmp_path / "run") if row["val/loss"]}
    best = min((step for step in held_out if step), key=lambda step: held_out[step])
    assert max(held_out) == best + 3 < 100
    assert rate < 1 or held_out[0] < held_out[best]
    kept = checkpoint.load(checkpoint.at(tmp_path / "run" / "only" / "checkpoints", best))["state_dict"]
    exported = AutoModelForCausalLM.from_pretrained(result.export).state_dict()
    assert all(torch.equal(value, kept[f"policy.model.{name}"]) for name, value in exported.items())


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_log_is_the_same_however_a_step_is_cut(layout: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows("dpo", tmp_path / "rows.jsonl")
    logs = []
    for micro in (8, 3, 1):
        output = tmp_path / f"run-{micro}"
        train(
            run_for("dpo", tiny_model_dir, rows, output, train={"micro_batch_size": micro, "layout": layout}),
            progress=False,
        )
        logs.append(log(output))
    for name in logs[0][0]:
        if "accurac" in name:
            continue  # a step function of differences that are mere rounding at the start
        whole, *cut = ([float(row[name]) for row in rows_ if row[name]] for rows_ in logs)
        for other in cut:
            assert other == pytest.approx(whole, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("algorithm", ["dpo", "reward_model", "grpo", "ppo"])
def test_the_log_is_the_same_with_and_without_shared_prefixes(
    algorithm: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of training, of the reference, the critic, and those that measure a group's completions."""
    rows = write_rows(algorithm, tmp_path / "rows.jsonl", count=16)
    forward, shared = Policy.forward, Counter[bool]()

    def counted(self: Policy, micro: MicroBatch) -> Any:
        shared[micro.subtree_end_RL is not None] += 1
        return forward(self, micro)

    logs = []
    for share in (True, False):
        monkeypatch.setattr(Policy, "forward", counted if share else forward)
        settings = {"micro_batch_size": None, "shared_prefix": share, "num_train_epochs": 2}
        run = run_for(algorithm, tiny_model_dir, rows, tmp_path / str(share), train=settings)
        train(run, progress=False)
        logs.append(log(tmp_path / str(share)))
    assert shared[True] > shared[False], "what is compared is not shared"
    assert logs[0][0].keys() == logs[1][0].keys() and len(logs[0]) == len(logs[1])
    for name in logs[0][0]:
        if "accurac" in name or "time" in name:
            continue  # accuracy: a step function of differences that are mere rounding at the start
        one, other = ([float(row[name]) for row in rows_ if row[name]] for rows_ in logs)
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4), name


def test_a_forgetting_probe_is_logged_apart(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Continual pre-training on one text, held-out perplexity on that domain and on another, named apart."""
    domain = write_rows("pretrain", tmp_path / "domain.jsonl")
    general = tmp_path / "general.jsonl"
    general.write_text("".join(json.dumps({"text": "Is the answer right? " * n}) + "\n" for n in (3, 5, 7)))
    data = {
        "validation": [{"path": str(domain), "name": "domain"}, {"path": str(general), "name": "general"}],
        "validation_fraction": 0.0,
    }
    (result,) = train(run_for("pretrain", tiny_model_dir, domain, tmp_path / "run", data=data), progress=False)
    before, after = log(tmp_path / "run")[0], result.metrics
    assert float(before["val/domain/perplexity"]) == pytest.approx(math.exp(float(before["val/domain/loss"])))
    assert after["val/domain/perplexity"] < 0.9 * float(before["val/domain/perplexity"])
    assert after["val/general/perplexity"] != after["val/domain/perplexity"]
    assert after["val/loss"] == after["val/domain/loss"], "the first set picks the best checkpoint"


def streamed(model: Path, tmp_path: Path, output: str) -> Run:
    rows = write_rows("pretrain", tmp_path / "stream.jsonl")
    return run_for(
        "pretrain",
        model,
        rows,
        tmp_path / output,
        data={"stream": True, "stream_window": 20, "validation_fraction": 0.0},
        train={"max_steps": 13},
    )


def test_a_stream_goes_on_at_the_same_row(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Thirteen steps of 8 in windows of 20 (8, 8, 4): past the file's 48 rows, and stopped in the fourth window."""
    (whole,) = train(streamed(tiny_model_dir, tmp_path, "whole"), progress=False)
    stop = StopAt(10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "collect", lambda hook, **_: [stop] if hook == "make_callbacks" else [])
        with pytest.raises(Interrupted):
            train(streamed(tiny_model_dir, tmp_path, "broken"), progress=False)
    (broken,) = train(streamed(tiny_model_dir, tmp_path, "broken"), resume=True, progress=False)
    assert log(tmp_path / "broken") == log(tmp_path / "whole")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (broken.export / name).read_bytes() == (whole.export / name).read_bytes()


class StopAt(Callback):
    """Sends SIGTERM to the process after a step; a plugin's callback like any other."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Waits(TorchDispatchMode):
    """Counts operations that on a GPU make the host wait for it, by the file that calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and any(
            isinstance(x, Tensor) and x.dtype is torch.bool for x in (args[1] if isinstance(args[1], list) else [])
        )
        # lift_fresh: a tensor made of Python numbers, which has to be copied to the device.
        names = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "repeat_interleave", "lift_fresh")
        if by_mask or name in names:
            frame = sys._getframe()
            while frame is not None and not {"align", "transformers"} & set(Path(frame.f_code.co_filename).parts):
                frame = frame.f_back  # type: ignore[assignment]
            where = "?" if frame is None else Path(frame.f_code.co_filename).parts
            self.found["transformers" if "transformers" in where else f"{where[-1]}: {name}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "orpo", "kto", "reward_model", "grpo", "rloo", "ppo"])
def test_a_step_waits_for_the_device_once(
    algorithm: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its metrics, flags and norms, before the optimizer may step; KTO's z is another time, if it has one."""
    waits, steps, gathered = Waits(), [], []
    step, gather = module.AlignModule.optimizer_step, module.gather

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        with waits if steps else nullcontext():  # the first step tries the model's head
            step(self, *args, **kwargs)
        steps.append(1)

    def counted(table: Tensor) -> Tensor:
        gathered.append(1)
        return gather(table)

    monkeypatch.setattr(module.AlignModule, "optimizer_step", watched)
    monkeypatch.setattr(module, "gather", counted)
    rows = write_rows(algorithm, tmp_path / "rows.jsonl", 24)
    data = {"validation_fraction": 0.0}
    train(run_for(algorithm, tiny_model_dir, rows, tmp_path / "run", data=data, train={"max_steps": 3}), progress=False)
    waits.found.pop("transformers", None)  # its masks look whether there is any padding
    assert not waits.found
    assert len(gathered) == (2 if algorithm == "kto" else 1) * len(steps) and len(steps) == 3


def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of sequences of each pass of the reference before training."""
    seen: list[int] = []
    plain = precompute.detached_logp

    def counted(policy: Policy, micro: MicroBatch) -> Tensor:
        seen.append(micro.last_B.numel())
        return plain(policy, micro)

    monkeypatch.setattr(precompute, "detached_logp", counted)
    return seen


def test_the_reference_is_measured_for_the_planned_rows_alone(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 pairs, of which some are held out: two steps of four pairs need 8 pairs to train on, four steps 16."""
    seen = measured(monkeypatch)
    rows = write_rows("dpo", tmp_path / "rows.jsonl")

    def first_loss(output: str, **train_settings: Any) -> float:
        seen.clear()
        train(
            run_for("dpo", tiny_model_dir, rows, tmp_path / output, train={"batch_size": 4, **train_settings}),
            progress=False,
        )
        (loss, *_) = [row["loss"] for row in log(tmp_path / output) if row["loss"]]
        return float(loss)

    two = first_loss("two", max_steps=2)
    held_out = sum(seen) - 2 * 8
    assert 0 < held_out < 2 * 24
    assert first_loss("again", max_steps=2) == two and not seen, "the cached values were measured again"
    assert first_loss("four", max_steps=4) == pytest.approx(two, abs=1e-6) and sum(seen) == 2 * 16
    first_loss("epoch", num_train_epochs=1)
    assert sum(seen) == 2 * 48 - held_out


def test_check_does_everything_but_train(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = write_rows("dpo", tmp_path / "rows.jsonl")
    (found,) = check(run_for("dpo", tiny_model_dir, rows, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert found.rows + found.held_out_rows == 48 and found.steps == 3 * -(-found.rows // 8)
    # Eight examples, three at a time; the two of a pair share their prompt.
    assert found.first_step.endswith("scored tokens in 3 micro-batches (padded, shared prefixes)")
    assert [s.role for s in found.first.sequences] == ["chosen", "rejected"]


def test_a_start_killed_before_its_first_file_can_be_made_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Found by the kill loop: whatever a killed start leaves, the next one is not refused."""
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-77-run.yaml").write_text("output: ru")
    assert train(run_for("sft", tiny_model_dir, rows, tmp_path / "run", train={"max_steps": 1}), progress=False)
    assert not list((tmp_path / "run").glob(".tmp-*"))
