"""A stage with a gate: a run stops, keeps or rolls back by what its export measures, exactly once, and resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from align import AlignError, Eval, report
from align.core.inference.eval_models import ModelChoice
from align.core.plugin_system.registry import Offer, registry
from align.core.training import gate_export
from align.core.training.gate_export import check_gate, pass_gate
from align.core.training.launch import train
from align.core.training.run_directory import RunDirectory, StageDirectory
from align.core.util import atomic_files
from align.core.util.atomic_files import file_sums
from align.evals import Episode, Item, LogLikelihood, Result
from align.schemas.run import Gate, Run
from tests.core.runs import WORDS, run_for, write_rows


class Likelier(Eval):
    """Counts the words that a model finds likelier than their reversal, which training on them raises."""

    name: ClassVar[str] = "likelier"
    likelihoods: ClassVar[bool] = True

    class Config(Eval.Config):
        """Settings. reverse: count the others."""

        reverse: bool = False
        count: int = 200

    config: Config

    def load(self) -> Sequence[Item]:
        """Make pairs of a word of the training rows and the same letters from right to left."""
        words = [WORDS[i % len(WORDS)] for i in range(self.config.count)]
        return [Item(f"{i}", [word, word[::-1]]) for i, word in enumerate(words)]

    def run(self, item: Item) -> Episode:
        """Ask for both continuations after a user's message."""
        word, other = item.target
        prompt = [{"role": "user", "content": f"{word} {item.id}"}]
        same, another = yield [LogLikelihood(prompt, word), LogLikelihood(prompt, other)]
        right = same.logp > another.logp
        return Result(float(right != self.config.reverse))


@pytest.fixture(autouse=True)
def suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the eval; write suites in which training makes the model better, and worse, and a policy."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    offers = dict(registry.offers("eval"))
    offers["likelier"] = [Offer("eval", "likelier", registry.hooks.plugins()[0], Likelier)]
    monkeypatch.setitem(registry._offers, "eval", offers)
    for name, reverse in (("better", "false"), ("worse", "true")):
        (tmp_path / f"{name}.yaml").write_text(f"evals: [{{type: likelier, reverse: {reverse}}}]\n", encoding="utf-8")
    (tmp_path / "policy.yaml").write_text("domains: {d: {margin: 0.08, evals: {likelier: 1}}}\n", encoding="utf-8")
    yield


def gated(model: Path, tmp_path: Path, suite: str, output: str = "run", stages: int = 1, **gate: Any) -> Run:
    """Return a run whose first stage has a gate, and further stages that begin from its export."""
    rows = write_rows("sft", tmp_path / "rows.jsonl")
    gate = {"suite": str(tmp_path / f"{suite}.yaml"), "policy": str(tmp_path / "policy.yaml"), **gate}
    one = run_for("sft", model, rows, tmp_path / output, gate=gate, optimizer={"learning_rate": 5e-3})
    values = one.model_dump()
    for number in range(1, stages):
        later = {**values["stages"][0], "name": f"later{number}", "gate": None}
        values["stages"].append({**later, "model": {**later["model"], "path": "stage:only"}})
    return Run.model_validate(values)


def decision(tmp_path: Path, output: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / output / "only" / "gate.json").read_text(encoding="utf-8"))
    return found


def test_a_better_export_passes_and_a_second_start_measures_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = gated(tiny_model_dir, tmp_path, "better")
    (result,) = train(run, progress=False)
    first = decision(tmp_path)
    assert (first["action"], first["report"]["outcome"]) == ("keep", "pass")
    assert first["report"]["result"]["domains"][0]["verdict"] == "improved"
    before = (tmp_path / "run" / "only" / "gate" / "candidate" / "rows.jsonl").stat().st_mtime_ns
    assert train(run, progress=False) == [result]
    assert before == (tmp_path / "run" / "only" / "gate" / "candidate" / "rows.jsonl").stat().st_mtime_ns


def test_a_regression_stops_the_run_before_later_stages_and_again_on_resume(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    run = gated(tiny_model_dir, tmp_path, "worse", stages=2)
    for resume in (False, True):
        with pytest.raises(AlignError, match="the gate's verdict is: regressed"):
            train(run, resume=resume, progress=False)
    assert not (tmp_path / "run" / "later1").exists()
    assert decision(tmp_path)["report"]["result"]["blocking"] == ["d"]
    # Told to keep it, the run goes on from where it stopped; the eval runs on disk are not measured again.
    rows = (tmp_path / "run" / "only" / "gate" / "candidate" / "rows.jsonl").stat().st_mtime_ns
    (tmp_path / "run" / "only" / "gate.json").unlink()
    kept = gated(tiny_model_dir, tmp_path, "worse", stages=2, on_regression="keep")
    assert len(train(kept, resume=True, progress=False)) == 2
    assert decision(tmp_path)["action"] == "keep"
    assert rows == (tmp_path / "run" / "only" / "gate" / "candidate" / "rows.jsonl").stat().st_mtime_ns


def test_rolling_back_hands_on_the_model_that_the_stage_began_from(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = gated(tiny_model_dir, tmp_path, "worse", stages=2, on_regression="rollback")
    train(run, progress=False)
    stage = tmp_path / "run" / "only"
    assert file_sums(stage / "export") == file_sums(tiny_model_dir)
    assert file_sums(stage / "export-rejected") != file_sums(tiny_model_dir)
    page = report(tmp_path / "run").read_text(encoding="utf-8")
    assert "It is because of <bdi>d</bdi>" in page
    noted = json.loads((tmp_path / "run" / "later1" / "stage.json").read_text(encoding="utf-8"))
    start = file_sums(tiny_model_dir)["model.safetensors"]["sha256"]
    assert noted["inputs"]["model.path"]["model.safetensors"] == start


@pytest.mark.parametrize("done", ["nothing", "renamed", "copied"])
def test_a_rollback_that_was_killed_is_finished(done: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    import shutil

    run = gated(tiny_model_dir, tmp_path, "worse", on_regression="rollback")
    train(run, progress=False)
    stage = tmp_path / "run" / "only"
    rejected = file_sums(stage / "export-rejected")
    trained = json.loads((stage / "done.json").read_text(encoding="utf-8"))
    shutil.rmtree(stage / "export")
    if done == "nothing":
        (stage / "export-rejected").rename(stage / "export")
    elif done == "copied":
        shutil.copytree(tiny_model_dir, stage / "export")
    train(run, resume=True, progress=False)
    assert file_sums(stage / "export") == file_sums(tiny_model_dir)
    assert file_sums(stage / "export-rejected") == rejected
    assert json.loads((stage / "done.json").read_text(encoding="utf-8"))["files"] == trained["files"]


def test_what_follows_where_the_data_cannot_tell(tiny_model_dir: Path, tmp_path: Path) -> None:
    text = "evals: [{type: likelier, reverse: true, count: 20}]\n"
    (tmp_path / "few.yaml").write_text(text, encoding="utf-8")
    policy = "allow_underpowered: true\ndomains: {d: {margin: 0.06, evals: {likelier: 1}}}\n"
    (tmp_path / "policy.yaml").write_text(policy, encoding="utf-8")
    train(gated(tiny_model_dir, tmp_path, "few", "kept"), progress=False)
    assert decision(tmp_path, "kept")["report"]["outcome"] == "inconclusive"
    with pytest.raises(AlignError, match="the gate's verdict is: inconclusive"):
        train(gated(tiny_model_dir, tmp_path, "few", "stopped", on_inconclusive="stop"), progress=False)


def test_a_stored_run_is_a_baseline(tiny_model_dir: Path, tmp_path: Path) -> None:
    train(gated(tiny_model_dir, tmp_path, "better", "first"), progress=False)
    stored = tmp_path / "first" / "only" / "gate" / "baseline"
    train(gated(tiny_model_dir, tmp_path, "better", "second", baseline=str(stored)), progress=False)
    assert not (tmp_path / "second" / "only" / "gate" / "baseline").exists()
    assert decision(tmp_path, "first")["report"]["result"] == decision(tmp_path, "second")["report"]["result"]


def test_mistakes_in_suite_and_policy_come_before_training(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("domains: {d: {margin: 0.15, evals: {other: 1}}}\n", encoding="utf-8")
    with pytest.raises(AlignError, match="names the eval 'other'"):
        train(gated(tiny_model_dir, tmp_path, "better"), progress=False)
    assert not (tmp_path / "run").exists()
    floor = "domains: {d: {margin: 0.15, evals: {likelier: 1}}}\nfloors: {other: 0.5}\n"
    (tmp_path / "policy.yaml").write_text(floor, encoding="utf-8")
    with pytest.raises(AlignError, match="names the eval 'other'"):
        train(gated(tiny_model_dir, tmp_path, "better"), progress=False)
    with pytest.raises(AlignError, match="no suite is called"):
        values = gated(tiny_model_dir, tmp_path, "better").model_dump()
        values["stages"][0]["gate"]["suite"] = "nowhere"
        train(Run.model_validate(values), progress=False)


def test_the_start_is_measured_with_the_chat_template_of_the_stage(tiny_model_dir: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    (tmp_path / "template.jinja").write_text(template, encoding="utf-8")
    run = gated(tiny_model_dir, tmp_path, "better")
    model = run.stages[0].model.model_copy(update={"chat_template": str(tmp_path / "template.jinja")})
    stage = run.stages[0].model_copy(update={"model": model})
    chosen: list[ModelChoice] = []

    def stop(choice: ModelChoice) -> Any:
        chosen.append(choice)
        raise AlignError("seen")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gate_export, "open_model", stop)
        with pytest.raises(AlignError, match="seen"):
            pass_gate(RunDirectory(run), stage, stage.gate)  # type: ignore[arg-type]
    assert chosen == [ModelChoice(str(tiny_model_dir), chat_template=str(tmp_path / "template.jinja"))]


def test_other_ranks_wait_while_rows_come_and_until_the_rollback_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = StageDirectory(tmp_path)
    rows = tmp_path / "gate" / "candidate" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    now = 0.0
    steps = iter([
        *[lambda: rows.write_bytes(rows.read_bytes() + b"row" if rows.exists() else b"row")] * 5,
        lambda: atomic_files.write_json(tmp_path / "gate.json", {"action": "rollback"}),
        (tmp_path / gate_export.REJECTED).mkdir,
        place.export.mkdir,
    ])  # fmt: skip

    def sleep(_seconds: float) -> None:
        nonlocal now
        now += 8.0
        next(steps)()

    monkeypatch.setattr(gate_export.time, "sleep", sleep)
    monkeypatch.setattr(gate_export.time, "monotonic", lambda: now)
    gate_export._wait(place, timeout=30.0)
    assert next(steps, None) is None
    (tmp_path / "gate.json").unlink()
    steps = iter([lambda: None] * 5)
    with pytest.raises(AlignError, match="rank 0 measured nothing for 30 s"):
        gate_export._wait(place, timeout=30.0)


def test_checking_a_gate_closes_what_reading_its_suite_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Eval] = []
    monkeypatch.setattr(Likelier, "close", lambda self: closed.append(self))
    check_gate(Gate(suite=str(tmp_path / "better.yaml"), policy=str(tmp_path / "policy.yaml")))
    assert len(closed) == 1
