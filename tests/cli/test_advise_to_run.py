"""As somebody new would: from `align advise init` to a trained model, by what the commands themselves say to do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from align.cli import main
from align.schemas.advice import Advice
from tests.core.runs import REWARDS, write_rows


def type_in(command: str) -> Result:
    """A command line, as one is printed: ``align train run.yaml --check``."""
    program, *words = shlex.split(command)
    assert program == "align"
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return done


def next_command(said: str) -> str:
    """The command that a message tells to go on with."""
    return re.findall(r"then: (align .*)", said)[-1]


def fill_in(form: str, **values: str) -> str:
    """The form with its lines ``field: null`` filled in."""
    for field, value in values.items():
        form, count = re.subn(rf"^( *){field}: (null|\[\])", rf"\g<1>{field}: {value}", form, count=1, flags=re.M)
        assert count == 1, field
    return form


@pytest.fixture(autouse=True)
def home(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_model_dir)


def test_from_an_empty_form_to_a_model() -> None:
    write_rows("sft", Path("letters.jsonl"), 600)
    said = type_in("align advise init").output
    form = Path("brief.yaml").read_text()
    form = fill_in(form, rules_count="27", name="model", gpus="0", max_length="64", baseline="0.8", target="0.95")
    form = form.replace("data: null", "data:\n  - {kind: sft_pairs, path: letters.jsonl}", 1)
    Path("brief.yaml").write_text(form)

    advised = type_in(next_command(said)).output
    assert "\nPost-training" in advised and "“rules_count: 27”  brief.yaml line" in advised
    said = type_in(next_command(said) + " --emit run.yaml").stderr
    assert "Before it runs" not in Path("run.yaml").read_text()  # nothing was left to be filled in
    assert "ready to train" in type_in(next_command(said)).output
    done = type_in(next_command(said).removesuffix(" --check") + " train.max_steps=2").output
    assert (Path("runs/advised/sft/export") / "config.json").is_file() and "sft: runs/advised/sft/export" in done
    kept = Advice.model_validate_json(Path("runs/advised/advice.json").read_bytes())
    assert kept.primary == "post_training" and kept.blocking == []


def test_from_words_and_files_to_a_pipeline() -> None:
    write_rows("sft", Path("answers.jsonl"), 600)
    write_rows("dpo", Path("pairs.jsonl"), 600)
    Path("brief.md").write_text(
        "Our support team answers in a house style, and 25 rules must hold in every answer.\n"
        "Prompting was tried and misses it. There are no GPUs.\n"
    )
    brief = "align advise brief.md --model model --data answers.jsonl --data pairs.jsonl"
    stages = [step.stage for step in Advice.model_validate_json(type_in(f"{brief} --format json").output).plan]
    assert stages == ["sft", "dpo"]
    said = type_in(f"{brief} --emit run.yaml").stderr
    few = "stages.sft.train.max_steps=2 stages.dpo.train.max_steps=2 stages.sft.data.max_length=64"
    assert "ready to train" in type_in(next_command(said)).output
    done = type_in(f"{next_command(said).removesuffix(' --check')} {few}").output
    assert "sft: runs/advised/sft/export" in done and "dpo: runs/advised/dpo/export" in done


def test_from_prompts_and_a_checker_to_learning_from_rewards() -> None:
    write_rows("grpo", Path("tasks.jsonl"), 1200)
    Path("brief.yaml").write_text(
        "description: The model should reason better.\n"
        "behaviour: {target_capability: reasoning, prompt_falls_short: true}\n"
        "data:\n  - {kind: prompts, path: tasks.jsonl}\n"
        f"reward: {{kind: verifier, path: '{REWARDS}:low_ids'}}\n"
        "model: {name: model, type: instruct}\nhardware: {gpus: 0}\ntraining: {max_length: 64}\n"
        "tried: [prompting, few_shot]\nevals: {baseline: 0.2, target: 0.6, held_out_rows: 500}\n"
    )
    said = type_in("align advise brief.yaml --emit run.yaml").stderr
    assert "type: grpo" in Path("run.yaml").read_text()
    type_in(
        next_command(said).removesuffix(" --check") + " train.max_steps=1 train.batch_size=16 schedule.warmup_steps=0"
    )
    assert Path("runs/advised/grpo/export/model.safetensors").is_file()
