"""Every example of docs/plugins.md, installed as a stranger would and used: what the page promises is what happens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.core.plugin_system.registry import Hooks, Registry
from align.schemas.hardware import Footprint, Hardware
from tests.core.runs import rows

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "hookimpl" in block]
(PROOF,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def test_my" in block)
GIB = 2**30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a distribution ``align-page 1.0`` whose entry points are the page's examples."""
    place = tmp_path_factory.mktemp("page")
    info = place / "align_page-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: align-page\nVersion: 1.0\n")
    names = [f"page_{number}" for number in range(len(BLOCKS))]
    info.joinpath("entry_points.txt").write_text("[align]\n" + "".join(f"{name} = {name}\n" for name in names))
    for name, block in zip(names, BLOCKS, strict=True):
        (place / f"{name}.py").write_text(block, encoding="utf-8")
    sys.path.insert(0, str(place))
    yield place
    sys.path.remove(str(place))


def align(place: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "align", *arguments],
        env={**os.environ, "PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "ALIGN_CACHE": str(place / "cache")},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        cwd=place,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_hook_has_a_whole_example() -> None:
    headings = re.findall(r"^### (\w+)\(", PAGE, re.MULTILINE)
    assert len(headings) == 15
    assert [hook for hook in headings if not any(f"\ndef {hook}(" in block for block in BLOCKS)] == []


def test_the_proof_passes(place: Path) -> None:
    known: dict[str, Any] = {}
    for number in range(len(BLOCKS)):
        known |= vars(__import__(f"page_{number}"))
    exec(PROOF, known)
    known["test_my_algorithm"]()
    known["test_my_reward"]()


def test_none_is_broken_and_the_command_is_there(place: Path) -> None:
    found = json.loads(align(place, "plugins", "list", "--json"))
    assert "broken" not in json.dumps(found).replace('"broken": {}', "")
    assert align(place, "words", "one two three") == "3\n"
    assert "Share of answers that equal" in align(place, "plugins", "show", "exact_share")


def test_a_run_made_of_them_alone(place: Path, tiny_model_dir: Path) -> None:
    """Format, algorithm, reward, generator, strategy, logger, callback and notices, in one run."""
    prompts = [{"question": row["prompt"][0]["content"], "solution": row["solution"]} for row in rows("grpo", 12)]
    (place / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    run = {
        "output": "out",
        "model": {"path": str(tiny_model_dir)},
        "data": {"train": [{"path": "quiz.jsonl", "format": "quiz"}]},
        "algorithm": {"type": "centred", "num_generations": 2},
        "rollout": {
            "rewards": ["brevity", {"type": "brief", "limit": 100}],
            "generator": "plain",
            "sampling": {"max_completion_length": 6},
        },
        "train": {"batch_size": 8, "max_steps": 3},
        "devices": {"strategy": "first_device"},
        "loggers": ["csv", "lines"],
    }
    (place / "run.yaml").write_text(yaml.safe_dump(run))
    align(place, "train", "run.yaml", "--quiet")
    out = place / "out"
    (stage,) = (path.parent for path in out.rglob("metrics.jsonl"))
    logged = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [1, 2, 3]
    assert all(0 < line["rewards/brief/mean"] <= 1 for line in logged if "rewards/brief/mean" in line)
    assert (out / "started.txt").read_text() == "1 stages\n"
    assert (out / "heartbeat.txt").read_text() == "3\n"
    assert [line.partition(":")[0] for line in (out / "best.txt").read_text().splitlines()] == ["1", "2", "3"]
    name, _, export = (out / "exports.txt").read_text().strip().partition(": ")
    assert (name, Path(place, export).is_dir()) == (stage.name, True)


def test_the_preference_example_is_dpo(place: Path) -> None:
    """Gradients equal those of align's own on the same pairs."""
    import torch

    from align.plugins.algorithms.dpo import DPO
    from align.testing import step_gradients, toy_examples, toy_policy
    from align.testing.algorithm_checks import _Frozen

    (module,) = (__import__(f"page_{n}") for n, block in enumerate(BLOCKS) if "class Preferring" in block)
    policy, reference = toy_policy().double(), _Frozen(toy_policy(seed=1).double())
    found = []
    for algorithm in (module.Preferring(module.Preferring.Config(beta=0.3)), DPO(DPO.Config(beta=0.3))):
        found.append(step_gradients(algorithm, policy, reference, toy_examples("preference"), [range(8)]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-9, atol=1e-12)


def test_the_check_the_strategy_and_the_rule_answer(place: Path) -> None:
    import importlib.metadata

    (ours,) = importlib.metadata.entry_points(group="align", name="builtin")
    theirs = [e for d in importlib.metadata.distributions(path=[str(place)]) for e in d.entry_points]
    registry = Registry(Hooks([*theirs, ours]))
    small, large = Footprint(GIB, 0), Footprint(7 * GIB, 0)
    assert registry.first("choose_strategy", hardware=Hardware("cuda", 1, 1, 8 * GIB), footprint=small) == "single"
    # Not its to say: align's own answers then.
    assert registry.first("choose_strategy", hardware=Hardware("cuda", 2, 1, 8 * GIB), footprint=large) != "single"
    assert "ACME-1" in registry.names("rule")
