"""Strangers, really installed: pip puts the two plugins of tests/strangers into a directory, one broken on purpose."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
import yaml

from align.core.plugin_system.diagnose import about
from align.core.plugin_system.registry import Offer, Plugin

STRANGERS = Path(__file__).parents[1] / "strangers"


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory they are installed in."""
    place = tmp_path_factory.mktemp("strangers")
    sources = [str(shutil.copytree(STRANGERS / name, place / name)) for name in ("brevity", "broken")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(place / "site"), *sources], check=True)
    return place / "site"


def align(strangers: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "align", *arguments],
        env={**os.environ, "PYTHONPATH": str(strangers), "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
    )


def read_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_list_shows_what_each_offers_and_who_is_broken(strangers: Path) -> None:
    done = align(strangers, "plugins", "list")
    shown = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    rows = [line[:3] for line in shown] + [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0
    texts = {name: text for _, name, _, text in (line for line in shown if len(line) == 4)}
    assert texts["brevity"] == "1 for an answer of no length, falling to 0 at ``limit`` characters."
    assert texts["plain_nll"] == "Scale * -log p of every scored token.", "read from its source: torch is not imported"
    assert texts["shortness"] == "Print the reward of TEXT."
    (counted,) = [line for line in done.stdout.splitlines() if line.startswith("rule ") and " builtin " in line]
    assert counted.endswith("to list them: align plugins list --kind rule")
    rules = align(strangers, "plugins", "list", "--kind", "rule").stdout.splitlines()
    assert any(line.startswith("rule  R-RAG-2 ") for line in rules) and "R-RAG-2" not in texts
    assert f"({sum(line.startswith('rule ') and ' builtin ' in line for line in rules)})" in counted
    assert ["reward", "brevity", "brevity"] in rows
    assert ["algorithm", "plain_nll", "brevity"] in rows and ["algorithm", "dpo", "builtin"] in rows
    assert ["command", "shortness", "brevity"] in rows
    assert ["brevity", "align-brevity", "1.2", "align_brevity"] in rows
    assert "broken   align-broken   0.3      align_broken           broken: align plugins doctor" in done.stdout


def test_about_follows_names_through_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a package's own __init__ one dot is the package itself, in a module the package that it is in."""
    sources = {
        "outer_room/__init__.py": "from .inner import Thing",
        "outer_room/inner/__init__.py": "from .impl import Thing",
        "outer_room/inner/impl.py": 'class Thing:\n    """The thing. And more."""',
        "outer_room/inner/other.py": "from ..inner import Thing as Renamed",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugin = Plugin("rooms", "outer_room", "rooms", "1.0")
    for target in ("outer_room:Thing", "outer_room.inner:Thing", "outer_room.inner.other:Renamed"):
        assert about(Offer("reward", "thing", plugin, target)) == "The thing."


def test_list_as_json(strangers: Path) -> None:
    found = read_json(align(strangers, "plugins", "list", "--json", "--kind", "reward"))
    said = "1 for an answer of no length, falling to 0 at ``limit`` characters."
    assert {"kind": "reward", "name": "brevity", "plugin": "brevity", "about": said} in found["offers"]
    assert all(offer["kind"] == "reward" and offer["plugin"] in ("builtin", "brevity") for offer in found["offers"])
    broken = {plugin["name"]: plugin["broken"] for plugin in found["plugins"]}
    assert broken == {
        "builtin": {},
        "brevity": {},
        "broken": {"load": "SystemExit: licence server not found (align_broken.py, line 5)"},
    }


def test_list_without_loading_imports_none_of_it(strangers: Path) -> None:
    found = read_json(align(strangers, "plugins", "list", "--no-load", "--json"))
    assert [plugin["name"] for plugin in found["plugins"]] == ["builtin", "brevity", "broken"]
    assert [plugin["broken"] for plugin in found["plugins"]] == [{}, {}, {}]


def test_show_tells_what_it_is_and_its_settings(strangers: Path) -> None:
    assert align(strangers, "plugins", "show", "brevity").stdout == (
        "reward brevity, of plugin 'brevity' (align-brevity 1.2), from align_brevity:brevity\n\n"
        "1 for an answer of no length, falling to 0 at ``limit`` characters.\n\n"
        "limit: integer, default 200\n"
    )
    (shown,) = read_json(align(strangers, "plugins", "show", "plain_nll", "--json"))
    assert shown["settings"] == [
        {"name": "scale", "type": "number > 0", "required": False, "default": 1.0, "about": "Factor on the loss."}
    ]


def test_a_strangers_reward_scores(strangers: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "2+2?", "completion": said} for said in ("4", "", "four, I think")]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = align(strangers, "reward", "score", "brevity", str(tmp_path / "said.jsonl"), "--set", "limit=10", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["score"], line["outcome"]) for line in found] == [(0.9, "scored"), (None, "abstained"), (0, "scored")]


def test_show_of_nothing_says_what_is_near_and_what_is_broken(strangers: Path) -> None:
    done = align(strangers, "plugins", "show", "brevty")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "no plugin offers 'brevty'\n    did you mean 'brevity'?\n"
    done = align(strangers, "plugins", "show", "brevty", "--kind", "reward")
    assert done.stderr == (
        "no reward is called 'brevty'\n    did you mean 'brevity'?\n"
        "    plugin 'broken' (align-broken 0.3) may offer it and failed: "
        "SystemExit: licence server not found (align_broken.py, line 5)\n"
    )


def test_doctor_fails_for_the_broken_one_and_says_where(strangers: Path) -> None:
    done = align(strangers, "plugins", "doctor")
    assert done.returncode == 1
    assert "error: plugin 'broken' (align-broken 0.3)\n    fails to load: SystemExit: licence" in done.stdout
    assert 'align_broken.py", line 5' in done.stdout
    assert done.stdout.endswith("plugins: 3, problems: 1\n")


def test_doctor_is_content_without_it(strangers: Path) -> None:
    done = align(strangers, "plugins", "doctor", "--json", ALIGN_PLUGINS="brevity")
    assert (done.returncode, done.stdout) == (0, "[]\n")


def test_plugins_left_out_are_listed_as_such(strangers: Path) -> None:
    assert align(strangers, "plugins", "list", ALIGN_PLUGINS="").stdout.count("left out by ALIGN_PLUGINS") == 2


def test_a_command_of_a_stranger(strangers: Path) -> None:
    assert align(strangers, "shortness", "x" * 50).stdout == "0.75\n"
    done = align(strangers, "shortnes", "x")
    assert done.returncode == 2
    assert done.stderr.startswith("no command is called 'shortnes'\n    did you mean 'shortness'?")
    done = align(strangers, "trian")
    assert (done.returncode, done.stderr) == (2, "no command is called 'trian'\n    did you mean 'train'?\n")


def test_a_run_that_uses_a_stranger_beside_a_broken_one(strangers: Path, tmp_path: Path) -> None:
    text = "output: o\nmodel: {path: m}\ndata: {train: r}\nalgorithm: {type: plain_nll, scale: 2}\n"
    (tmp_path / "run.yaml").write_text(text)
    script = """
import align
for overrides in [], ["algorithm.scale=-1"], ["algorithm.type=plain"]:
    try:
        print(align.load("run.yaml", overrides).stages[0].algorithm)
    except align.AlignError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(strangers)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "type='plain_nll' settings={'scale': 2}\n"
        "command line: algorithm.scale\n    is -1; must be greater than 0\n"
        "command line: algorithm.type\n    no algorithm is called 'plain'\n    did you mean 'plain_nll'?\n"
        "    plugin 'broken' (align-broken 0.3) may offer it and failed: "
        "SystemExit: licence server not found (align_broken.py, line 5)\n"
    )


@pytest.fixture(scope="session")
def schema(strangers: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(align(strangers, "schema"))
    return found


@pytest.mark.parametrize(
    "text",
    [
        "{output: o, model: {path: m}, data: {train: r}, algorithm: dpo}",
        "{output: o, data: {train: [a, {path: b, weight: 2}]}, algorithm: {type: plain_nll, scale: 2}}",
        "{output: o, model: {path: m}, stages: [{name: a, algorithm: {beta: 0.2}, devices: {strategy: ddp}}]}",
        "{output: o, algorithm: {type: dpo, loss_type: {sigmoid: 0.8, sft: 1.0}}, loggers: [csv, {type: wandb}]}",
        "{output: o, model: {adapter: null}, data: {validation: null, train: {path: a, format: alpaca}}}",
        "{output: o, algorithm: grpo, rollout: {rewards: [math, {type: brevity, weight: 0.1, limit: 9}], gold: math}}",
        "{output: o, project: {data: [{kind: prompts}], tried: []}, overrides: [{rule: R-X-1, reason: a test}]}",
    ],
)
def test_the_schema_takes_what_load_takes(schema: dict[str, Any], text: str) -> None:
    fastjsonschema.compile(schema)(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{output: o, modell: {path: m}}",
        "{output: o, algorithm: dpoo}",
        "{output: o, algorithm: {type: dpo, bta: 1}}",
        "{output: o, algorithm: {type: plain_nll, scale: 0}}",
        "{output: o, stages: [{algorithm: {type: simpo, beta: -1}}]}",
        "{output: o, data: {train: {path: a, format: alpca}}}",
        "{output: o, loggers: [cvs]}",
        "{output: o, train: {num_train_epochs: two}}",
        "{output: o, algorithm: grpo, rollout: {rewards: [{type: brevity, limitt: 9}]}}",
        "{output: o, algorithm: grpo, rollout: {rewards: [maths]}}",
        "{output: o, project: {data: [{kind: promts}]}}",
        "{output: o, project: {behaviour: {rules_count: -1}}}",
        "{output: o, overrides: [{rule: R-X-1}]}",
    ],
)
def test_the_schema_refuses_what_load_refuses(schema: dict[str, Any], text: str) -> None:
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        fastjsonschema.compile(schema)(yaml.safe_load(text))


def test_list_says_of_every_builtin_what_it_is(strangers: Path) -> None:
    """In words, on its line: no name without any, no formula alone."""
    found = read_json(align(strangers, "plugins", "list", "--json", ALIGN_PLUGINS="builtin"))
    assert len(found["offers"]) > 90
    assert [offer for offer in found["offers"] if not offer["about"] or "\n" in offer["about"]] == []
    words = {offer["name"]: offer["about"] for offer in found["offers"] if offer["kind"] == "algorithm"}
    assert [name for name, text in words.items() if not re.match(r"(Learns|Samples) ", text)] == []
