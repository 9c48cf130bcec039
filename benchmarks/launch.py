"""Jobs that ``align launch`` writes, held against the tools that read them.

    python -m benchmarks.launch slurm    # a Slurm that runs here, with 3 nodes and `sbatch` in PATH: jobs that are
                                         # stopped in each way, and end with the weights of one that is not
    python -m benchmarks.launch files    # what is installed here of kubernetes-validate, kubeflow-trainer-api, skypilot
    python -m benchmarks.launch gpus     # `align estimate` for the sizes of docs/launch.md

Results are added to ``results/launch.json``. The nodes of a Slurm may all be this machine (one slurmd for each).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

GOLDEN = Path(__file__).parents[1] / "tests/core/launching/golden"
RESULTS = Path(__file__).parent / "results" / "launch.json"
KUBERNETES = ("1.28", "1.30", "1.33", "1.36")
EPOCHS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["slurm", "files", "gpus"])
    what = parser.parse_args().what
    measured = {"slurm": slurm, "files": files, "gpus": gpus}[what]()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(results | {what: measured}, indent=1, sort_keys=True) + "\n")
    print(json.dumps(measured, indent=1))


# --- Slurm -----------------------------------------------------------------------------------------------------------


def slurm() -> dict[str, Any]:
    """Jobs on two nodes: one left alone, one signalled before its time limit, one preempted, one cancelled."""
    with tempfile.TemporaryDirectory() as scratch:
        jobs = Jobs(Path(scratch))
        whole = jobs.start("whole")
        jobs.until(lambda: jobs.state(whole) == "COMPLETED", "the uninterrupted job")
        found: dict[str, Any] = {"version": said("sinfo", "--version"), "steps": len(jobs.losses("whole"))}
        found["time_limit"] = jobs.stopped("time-limit", lambda job: said("scancel", "--signal=USR1", job))
        found["preempted"] = jobs.stopped("preempted", lambda _: jobs.preempt())
        cancelled = jobs.start("cancelled")
        jobs.until(lambda: jobs.saved("cancelled") > 3, "a checkpoint")
        said("scancel", cancelled)
        jobs.until(lambda: jobs.state(cancelled) not in ("RUNNING", "COMPLETING"), "the end of a cancelled job")
        time.sleep(10)
        found["cancelled"] = {"state": jobs.state(cancelled), "saved_step": jobs.saved("cancelled")}
        return found


class Jobs:
    """Runs of one small model under Slurm, each in a directory of its own."""

    def __init__(self, scratch: Path) -> None:
        from tests.core.runs import write_rows
        from tests.tiny import save_tiny

        self.scratch = scratch
        self.model = save_tiny(scratch / "model")
        self.rows = write_rows("sft", scratch / "rows.jsonl")

    def start(self, name: str) -> str:
        """Submit a run as ``align launch`` writes it; return the job's number."""
        from align.core.config import run_file
        from tests.core.runs import run_for

        place = self.scratch / name
        place.mkdir()
        sections: dict[str, Any] = {"train": {"num_train_epochs": EPOCHS}, "validation": {"eval_steps": 1000}}
        run = run_for("sft", self.model, self.rows, Path("run"), devices={"accelerator": "cpu"}, **sections)
        (place / "run.yaml").write_text(run_file.dump(run))
        here = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        here |= {"PYTHONPATH": str(Path(__file__).parents[1]), "ALIGN_CACHE": str(self.scratch / "cache")}
        words = ["launch", "run.yaml", "--slurm", "--nodes=2", "--gpus=1", "--time=01:00:00", "--out=job"]
        words += [f"--env={variable}={value}" for variable, value in here.items()]
        subprocess.run([sys.executable, "-m", "align", *words], cwd=place, check=True, stdout=subprocess.DEVNULL)
        return said("sbatch", "--parsable", str(place / "job"))

    def stopped(self, name: str, stop: Callable[[str], object]) -> dict[str, Any]:
        """Stop a job once it has saved a few steps; return how it went on, next to the job left alone."""
        job = self.start(name)
        self.until(lambda: self.saved(name) > 3, "a checkpoint")
        stop(job)
        self.until(lambda: self.state(job) == "PENDING", "the queue")
        step = self.saved(name)
        self.until(lambda: not said("squeue", "--noheader", "--format=%i", "--partition=high"), "the other job")
        said("scontrol", "update", f"jobid={job}", "StartTime=now")  # Slurm lets a requeued job wait for two minutes
        self.until(lambda: self.state(job) == "COMPLETED", "the end of the requeued job")
        shown = said("scontrol", "show", "job", job)
        log = next((self.scratch / name).glob("run-*.log")).read_text()
        return {
            "stopped_after_step": step,
            "restarts": int(re.findall(r"Restarts=(\d+)", shown)[0]),
            "exit_of_tasks": sorted(map(int, re.findall(r"Exited with exit code (\d+)", log))),
            "same_weights": self.weights(name) == self.weights("whole"),
            "same_losses": self.losses(name) == self.losses("whole"),
        }

    def preempt(self) -> None:
        """Submit a job to the partition that takes nodes from others; it wants all of them."""
        said("sbatch", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait, for ten minutes at most."""
        deadline = time.monotonic() + 600
        while not done():
            if time.monotonic() > deadline:
                logs = [log.read_text()[-2000:] for log in self.scratch.glob("*/run-*.log")]
                raise TimeoutError("\n".join([what, *logs]))
            time.sleep(0.5)

    def state(self, job: str) -> str:
        """Return the job's state in Slurm's word."""
        return re.findall(r"JobState=(\w+)", said("scontrol", "show", "job", job))[0]

    def saved(self, name: str) -> int:
        """Return the last step that is saved."""
        places = (self.scratch / name / "run/only/checkpoints").glob("step-*")
        return max((int(found[0]) for place in places if (found := re.findall(r"^step-(\d+)$", place.name))), default=0)

    def weights(self, name: str) -> str:
        """Return the sha256 of the exported weights."""
        export = self.scratch / name / "run/only/export/model.safetensors"
        return hashlib.sha256(export.read_bytes()).hexdigest()

    def losses(self, name: str) -> list[str]:
        """Return the loss of every step as it was logged."""
        lines = (self.scratch / name / "run/only/metrics.csv").read_text().splitlines()
        columns = lines[0].split(",")
        rows = [line.split(",") for line in lines[1:]]
        return [loss for row in rows if (loss := row[columns.index("loss")])]


def said(*command: str) -> str:
    """Return what a command prints. Raises CalledProcessError where it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# --- Files -----------------------------------------------------------------------------------------------------------


def files() -> dict[str, Any]:
    """Every golden file through what is installed here of the tools that read it, added to what others have said."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()).get("files", {}) if RESULTS.exists() else {}
    for file in sorted(GOLDEN.iterdir()):
        check = {"sbatch": shellcheck, "jobset": kubernetes, "sky": skypilot}[file.name.split(".")[1]]
        with suppress(ImportError, FileNotFoundError):
            found.setdefault(file.name, {}).update(check(file))
    return found


def shellcheck(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield whether shellcheck finds nothing; SC2016 doubts a $ in single quotes, which is what is wanted."""
    done = subprocess.run(["shellcheck", "--exclude=SC2016", file], capture_output=True, check=False)
    yield "shellcheck", done.returncode == 0


def kubernetes(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield what the schemas of Kubernetes' releases, and the models of JobSet's API, say of a manifest."""
    import kubernetes_validate
    from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

    config, job_set = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    same = JobsetV1alpha2JobSet.from_dict(job_set).to_dict() == job_set
    yield f"JobSet, kubeflow-trainer-api {version('kubeflow-trainer-api')}", same
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": job_set["metadata"], **replicated["template"]}
    for release in KUBERNETES:
        for document in (config, job):
            kubernetes_validate.validate(document, release, strict=True)
        yield f"Kubernetes {release}, kubernetes-validate {version('kubernetes-validate')}", True


def skypilot(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield what SkyPilot's schema, and its parser, say of a task."""
    import jsonschema
    import sky
    from sky.utils import schemas

    task = yaml.safe_load(file.read_text(encoding="utf-8"))
    jsonschema.validate(task, schemas.get_task_schema())
    nodes = task["num_nodes"]  # the parser takes the mapping apart
    given = [(secret, "x") for secret in task.get("secrets", {})]
    read = sky.Task.from_yaml_config(task, secrets_overrides=given)
    yield f"skypilot {version('skypilot')}", read.num_nodes == nodes


def version(package: str) -> str:
    return metadata.version(package)


# --- Sizes -----------------------------------------------------------------------------------------------------------

SIZES = {"0.5B": "Qwen2.5-0.5B", "7B": "Qwen2.5-7B", "70B": "Llama-3.1-70B"}
"""A model of each size: without its config, `align estimate` takes a shape that is typical of so many parameters."""
PLANS = {
    "LoRA": {"adapter": {"r": 16}, "dtype": "bfloat16"},
    "all weights": {"dtype": "float32"},
}
GPUS = (("RTX 4090", 1), ("H100", 1), ("H100", 2), ("H100", 4), ("H100", 8), ("H100", 16), ("H100", 32), ("H100", 64))
RUN = """
output: out
algorithm: sft
data: {train: rows.jsonl, max_length: 2048}
train: {batch_size: 64, micro_batch_size: 1, precision: bf16-mixed}
"""


def gpus() -> list[dict[str, Any]]:
    """Estimate SFT of each size on each number of GPUs: rows of 2,048 tokens, one in a micro-batch, checkpointing."""
    from align.api.estimating import estimate
    from align.core.config import run_file

    found = []
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        row = {"messages": [{"role": "user", "content": "x " * 1000}, {"role": "assistant", "content": "y " * 1000}]}
        rows.write_text(f"{json.dumps(row)}\n" * 256)
        for size, path in SIZES.items():
            for plan, model in PLANS.items():
                settings = json.dumps({"path": path, "gradient_checkpointing": True, **model})
                run = run_file.parse(f"{RUN}model: {settings}\n", "run.yaml", [f"data.train={rows}"])
                for name, count in GPUS:
                    (stage,) = estimate(run, device=name, devices=count).to_json()["stages"]
                    gigabytes = round(max(stage["totals"].values()) / 1e9, 1)
                    found.append(
                        {
                            "model": size,
                            "learns": plan,
                            "gpu": name,
                            "count": count,
                            "strategy": stage["strategy"],
                            "verdict": stage["verdict"],
                            "gb_each": gigabytes,
                        }
                    )
    return found


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
