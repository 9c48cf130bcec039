"""``align estimate`` as a user meets it: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from align import AlignError, Hardware
from align.api.prelaunch import launch_problems
from align.cli import main
from align.core.config import run_file as runfile
from align.core.training.check import check
from tests.core.runs import run_for, write_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def run_file(model: Path, tmp_path: Path, algorithm: str = "sft", **laid_over: Any) -> Path:
    rows = write_rows(algorithm, tmp_path / "rows.jsonl")
    file = tmp_path / "run.yaml"
    file.write_text(runfile.dump(run_for(algorithm, model, rows, tmp_path / "run", **laid_over)))
    return file


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A directory with the config of an 8B model and nothing else: no weights, no tokenizer."""
    home = tmp_path / "llama-8b"
    home.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
        "max_position_embeddings": 8192,
    }
    (home / "config.json").write_text(json.dumps(config))
    return home


def estimate(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["estimate", str(file), *arguments])


def stages(done: Result) -> list[dict[str, Any]]:
    read = json.loads(done.stdout)
    assert read["schema"] == "align.estimate/1"
    return list(read["stages"])


def test_what_fits_ends_with_0_and_shows_two_bars(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = estimate(run_file(tiny_model_dir, tmp_path, "grpo"))
    assert done.exit_code == 0, done.output
    for words in (
        "only (grpo)",
        "training  ",
        "generation  ",
        "fits: ",
        "to spare",
        "kv cache",
        "total",
        "lora-single",
    ):
        assert words in done.output
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_ends_with_1_and_says_what_would(large: Path, tmp_path: Path) -> None:
    done = estimate(run_file(large, tmp_path, train={"micro_batch_size": None}), "--device", "A100-80")
    assert done.exit_code == 1, done.output
    assert "does not fit: " in done.output and "too much" in done.output
    assert done.output.index("model.adapter.r=16") > done.output.index("What would help")
    assert "Assumed: lengths: data.max_length (1024)" in done.output


def test_knobs_are_settings_that_can_be_given(large: Path, tmp_path: Path) -> None:
    """Laid over the run file, what is advised fits."""
    file = run_file(large, tmp_path, train={"micro_batch_size": None})
    (found,) = stages(estimate(file, "--device", "A100-80", "--format", "json"))
    settings = [f"stages.0.{remedy['set']}" for remedy in found["remedies"]]
    assert found["remedies"][-1]["verdict"] == "fits"
    done = estimate(file, *settings, "--device", "A100-80")
    assert done.exit_code == 0, done.output


def test_strategies_are_compared(large: Path, tmp_path: Path) -> None:
    file = run_file(large, tmp_path, train={"precision": "bf16-mixed"})
    (found,) = stages(estimate(file, "--device", "H100", "--devices", "8", "--format", "json"))
    plans = {plan["strategy"]: plan["verdict"] for plan in found["plans"]}
    assert plans["full-ddp"] == "does_not_fit" and plans["lora-fsdp"] == "fits" and plans["qlora-ddp"] == "fits"
    assert plans["full-fsdp-offload"] == "fits"
    needed = {plan["strategy"]: plan["total_gb"] for plan in found["plans"]}
    assert needed["full-fsdp-offload"] < needed["full-fsdp"] < needed["full-fsdp-zero2"] < needed["full-ddp"]
    assert found["devices"] == 8 and found["capacity"] == 80_000_000_000
    assert found["totals"]["training"] == pytest.approx(sum(found["phases"]["training"].values()), abs=10)


def test_a_dry_run_stands_beside_the_formulas(tiny_model_dir: Path, tmp_path: Path) -> None:
    (found,) = stages(estimate(run_file(tiny_model_dir, tmp_path, "dpo"), "--dry-run", "--format", "json"))
    counted = sum(found["dry_run"]["training"].values())
    assert found["totals"]["training"] == pytest.approx(counted, rel=0.1)
    shown = estimate(tmp_path / "run.yaml", "--dry-run")
    assert "dry run" in shown.output


def test_calibrating_runs_real_steps_elsewhere(tiny_model_dir: Path, tmp_path: Path) -> None:
    (found,) = stages(estimate(run_file(tiny_model_dir, tmp_path), "--calibrate", "--format", "json"))
    told = found["calibration"]
    assert 0.8 < told["factor"] < 1.25 and told["step_seconds"] > 0 and told["hours"] > 0
    assert told["peak"] == pytest.approx(told["estimated"], rel=0.1)
    assert not (tmp_path / "run").exists()


def test_every_stage_of_a_pipeline(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows, pairs = write_rows("sft", tmp_path / "s.jsonl"), write_rows("dpo", tmp_path / "p.jsonl")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"output: {tmp_path}/run\nstages:\n"
        f"- {{name: only, algorithm: sft, model: {{path: {tiny_model_dir}}}, data: {{train: {rows}}}}}\n"
        f"- {{name: dpo, algorithm: dpo, model: {{path: 'stage:only'}}, data: {{train: {pairs}}}}}\n"
    )
    found = stages(estimate(file, "--format", "json"))
    assert [(stage["stage"], stage["algorithm"]) for stage in found] == [("only", "sft"), ("dpo", "dpo")]
    assert found[0]["parameters"] == found[1]["parameters"]


def test_a_gpu_that_is_not_listed_is_estimated_by_its_memory(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = run_file(tiny_model_dir, tmp_path)
    refused = estimate(file, "--device", "H1000")
    assert refused.exit_code == 2 and "no accelerator is called 'H1000'" in refused.output
    assert "--memory GB" in refused.output
    done = estimate(file, "--device", "H1000", "--memory", "100")
    assert done.exit_code == 0 and "on H1000, 100 GB each" in done.output
    assert "the peak in TFLOP/s of H1000 is not known: --calibrate" in done.output
    (found,) = stages(estimate(file, "--device", "H1000", "--memory", "100", "--format", "json"))
    assert "peak in TFLOP/s" in found["unknown"] and found["work"]["gpu_hours"] is None


def test_cost_comes_from_a_price_file_only(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = run_file(tiny_model_dir, tmp_path)
    (free,) = stages(estimate(file, "--device", "L4", "--format", "json"))
    assert free["work"]["cost"] is None
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\ndate: 2026-11-01\nper_hour: {L4: 1000000}\n")
    (found,) = stages(estimate(file, "--device", "L4", "--prices", str(prices), "--format", "json"))
    assert found["work"]["currency"] == "EUR" and found["work"]["cost"]["high"] > 0
    prices.write_text("per_hour: 5\n")
    assert estimate(file, "--device", "L4", "--prices", str(prices)).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "H1000"), "no accelerator is called 'H1000'"),
        (("stages.0.model.path=no/such-model",), "neither a directory here nor a hub id"),
        (("stages.0.train.batchsize=3",), "did you mean 'batch_size'?"),
        (("--prices", "nowhere.yaml"), "cannot be read"),
        (("--memory", "0"), "--memory"),
    ],
)
def test_mistakes_end_with_2_and_no_traceback(
    arguments: tuple[str, ...], words: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    done = estimate(run_file(tiny_model_dir, tmp_path), *arguments)
    assert done.exit_code == 2
    assert words in done.output and "Traceback" not in done.output


def test_memory_alone_is_enough(large: Path, tmp_path: Path) -> None:
    file = run_file(large, tmp_path, train={"max_steps": 10})
    (found,) = stages(estimate(file, "--memory", "500", "--format", "json"))
    assert found["capacity"] == 500_000_000_000 and found["verdict"] == "fits"
    assert found["work"]["flops"] is not None and found["work"]["wall_hours"] is None


@pytest.mark.parametrize(("path", "said"), [("no/such-8B-Chat", None), ("no/such-model", 8)])
def test_a_model_that_cannot_be_had_is_estimated_by_its_size(
    path: str, said: float | None, tiny_model_dir: Path, tmp_path: Path
) -> None:
    file = run_file(tiny_model_dir, tmp_path)
    if said is not None:
        file.write_text(file.read_text() + f"project: {{model: {{params_b: {said}}}}}\n")
    laid = (f"stages.0.model.path={path}", "--device", "H100", "--format", "json")
    (found,) = stages(estimate(file, *laid))
    assert found["parameters"] == 8_030_261_248
    assert "a typical shape of 8.03B parameters" in [each["fact"] for each in found["assumptions"]]
    for option in ("--dry-run", "--calibrate"):
        refused = estimate(file, *laid, option)
        assert refused.exit_code == 2 and f"{option} needs a model" in refused.output


def test_a_device_of_which_only_the_memory_is_known_is_not_called_by_it(large: Path, tmp_path: Path) -> None:
    """It was "on 80 GB, 80 GB each"."""
    done = estimate(run_file(large, tmp_path), "--memory", "80")
    assert "parameters on GPU, 80 GB each" in done.output.splitlines()[0]
    assert "4 x GPU, 24 GB each" in estimate(tmp_path / "run.yaml", "--memory", "24", "--devices", "4").output


def test_rows_that_are_here_are_counted_though_the_model_is_not(tiny_model_dir: Path, tmp_path: Path) -> None:
    """48 rows, of which a fifth is held out, three epochs of batches of 8."""
    file = run_file(tiny_model_dir, tmp_path)
    (here,) = stages(estimate(file, "--device", "L4", "--format", "json"))
    (away,) = stages(estimate(file, "stages.0.model.path=no/such-8B", "--device", "L4", "--format", "json"))
    assert here["work"] is not None and away["work"] is not None
    shown = estimate(file, "stages.0.model.path=no/such-8B", "--device", "L4").output
    assert "Time: not known" not in shown and "data.max_length (1024): the model's tokenizer is not here" in shown
    rows, batch = 18 * 8, 1024  # 18 steps of 8 rows, each as long as may be
    assert away["work"]["tokens"]["high"] == rows * batch


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("stages.0.data.train=[nowhere.jsonl]", "nowhere.jsonl: not here"),
        ("stages.0.data.train=[bad.jsonl]", "the data cannot be read: bad.jsonl:1: "),
    ],
)
def test_what_keeps_the_time_from_being_known_is_named(
    setting: str, why: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"messages": 5}\n')
    shown = estimate(run_file(tiny_model_dir, tmp_path), setting).output
    (line,) = [line for line in shown.splitlines() if line.startswith("Time: ")]
    assert line.startswith("Time: not known: ") and why in line and line.endswith("; set train.max_steps to know it")
    told = estimate(tmp_path / "run.yaml", setting, "stages.0.train.max_steps=9").output
    assert "Time: not known" not in told


def test_gradients_of_one_micro_batch_a_step_are_explained(tiny_model_dir: Path, tmp_path: Path) -> None:
    """They have an entry for generation and none for training, whose fullest instant is before the backward pass."""
    file = run_file(tiny_model_dir, tmp_path, "rloo")
    at_once = estimate(file, "stages.0.train.micro_batch_size=8", "--device", "H100").output
    accumulated = estimate(file, "stages.0.train.micro_batch_size=1", "--device", "H100").output
    explained = "In training that is before the backward pass"
    assert explained in at_once and explained not in accumulated


ONLINE = {"rollout": {"rewards": [{"type": "math"}]}, "train": {"batch_size": 8, "precision": "bf16-mixed"}}


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "online_dpo", "dpo", "sft", "reward_model"])
@pytest.mark.parametrize("place", [("H100", 8, ()), ("A100-40", 4, ("stages.0.devices.strategy=fsdp",)), ("L4", 1, ())])
def test_a_plan_that_training_refuses_is_not_recommended(
    algorithm: str, place: tuple[str, int, tuple[str, ...]], large: Path, tmp_path: Path
) -> None:
    """8B over several devices needs fsdp, which cannot split a 4-bit base; the generator local gathers what it needs.

    What would help, laid over the file, is a run file that loads, that fits, and that is not refused. What is sampled
    from is gathered whole where that fits.
    """
    device, count, more = place
    file = run_file(large, tmp_path, algorithm, train={"micro_batch_size": None, "precision": "bf16-mixed"})
    on = ("--device", device, "--devices", str(count), "--format", "json")
    (found,) = stages(estimate(file, *more, *on))
    assert found["refused"] is None and found["strategy"] == ("single" if count == 1 else "fsdp")
    assert found["why"].startswith(f"{found['strategy']}, because ")
    assert "qlora-fsdp" not in {plan["strategy"] for plan in found["plans"]}
    if found["strategy"] == "fsdp" and algorithm in ("grpo", "rloo", "online_dpo"):
        layers, whole = 2 * (2 * 218_112_000 + 2 * 525_336_576), 2 * 8_030_261_248
        expected = whole if device == "H100" else layers  # on 4 x 40 GB nothing fits whole
        assert found["phases"]["generation"]["gathered"] == expected
    if found["remedies"] and found["remedies"][-1]["verdict"] == "fits":
        settings = [f"stages.0.{remedy['set']}" for remedy in found["remedies"]]
        (helped,) = stages(estimate(file, *more, *settings, *on))
        assert helped["refused"] is None and helped["verdict"] == "fits"


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "staleness": ("grpo", {"rollout": {"max_staleness": 1}}),
    "single": ("sft", {"devices": {"count": 2, "strategy": "single"}}),
    "stream": ("dpo", {"data": {"stream": True, "validation_fraction": 0.0}, "train": {"max_steps": 2}}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_training_refuses_the_verdict_says_in_the_same_words(
    case: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    algorithm, sections = REFUSED[case]
    file = run_file(tiny_model_dir, tmp_path, algorithm, **sections)
    with pytest.raises(AlignError) as refused:
        check(runfile.load(file), progress=False)
    done = estimate(file)
    (problem,) = refused.value.problems
    assert done.exit_code == 1 and f"training would refuse it: {problem.where}: {problem.what}" in done.output


def test_what_the_advice_stops_is_in_the_verdict(tiny_model_dir: Path, tmp_path: Path) -> None:
    """``check_run`` of the built-in plugin, asked about the hardware that is planned for."""
    file = run_file(tiny_model_dir, tmp_path)
    file.write_text(file.read_text() + "project:\n  knowledge: {changes: daily, source: proprietary}\n")
    run = runfile.load(file)
    (stop,) = [p for p in launch_problems(run, Hardware("cuda", 8, 2, 80 * 10**9, name="H100")) if p.level == "error"]
    done = estimate(file, "--gpu", "H100", "--gpus", "8", "--nodes", "2", "--format", "json")
    assert done.exit_code == 1 and stop.what in {each["what"] for each in json.loads(done.stdout)["problems"]}
    assert f"training would refuse it: {stop.where}" in estimate(file, "--gpu", "H100").output


def test_each_rank_has_its_own_memory_and_rank_0_gathers_checkpoints(tiny_model_dir: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"train": {"micro_batch_size": 1, "batch_size": 3}, "devices": {"strategy": "fsdp"}}
    file = run_file(tiny_model_dir, tmp_path, **sections)
    (found,) = stages(estimate(file, "--gpu", "L4", "--gpus", "2", "--nodes", "2", "--format", "json"))
    assert [each["rank"] for each in found["ranks"]] == [0, 1, 2, 3]
    assert max(each["training"] for each in found["ranks"]) == found["totals"]["training"]
    assert min(each["training"] for each in found["ranks"]) < found["totals"]["training"]  # one of four has no row
    assert [each["host"] for each in found["ranks"]] == [3 * 4 * found["parameters"], 0, 0, 0]
    shown = estimate(file, "--gpu", "L4", "--gpus", "2", "--nodes", "2").output
    assert "1 to 3" in shown and "1 of 4 devices have no row in a step" in shown
    (whole,) = stages(estimate(file, "stages.0.devices.strategy=ddp", "--gpu", "L4", "--gpus", "4", "--format", "json"))
    assert {each["host"] for each in whole["ranks"]} == {0}


def test_a_reward_model_is_counted_on_each_device(tiny_model_dir: Path, large: Path, tmp_path: Path) -> None:
    reward = {"type": "reward_model", "path": str(large), "dtype": "bfloat16"}
    file = run_file(tiny_model_dir, tmp_path, "grpo", rollout={"rewards": [reward]})
    (found,) = stages(estimate(file, "--gpu", "H100", "--format", "json"))
    assert found["phases"]["generation"]["reward"] == pytest.approx(2 * 8.03e9, rel=0.01)
    gone = {**reward, "path": "nobody/nothing"}
    (blind,) = stages(
        estimate(run_file(tiny_model_dir, tmp_path, "grpo", rollout={"rewards": [gone]}), "--format", "json")
    )
    assert "reward" not in blind["phases"]["generation"]
    assert "the reward model is not counted" in {each["fact"] for each in blind["assumptions"]}
