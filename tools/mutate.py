"""Mutation testing of the engine's core with mutmut: `python tools/mutate.py [--json FILE] [MODULE...]`.

mutmut changes one operator, constant or argument at a time and runs the tests that reach the changed function. A
mutant that no test notices survives: a bug of that shape could live. `TESTS` pairs each module with the fastest tests
meant for it. Messages are left out. The work is done in copies of the tree, one a module; a second run tests only what
changed.

Each survivor is either killed by a sharper test or explained in the results file (`why`), which a later run keeps.
mutmut leaves out module constants and functions with a decorator (properties).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

TESTS: dict[str, list[str]] = {
    "align/core/data/step_plan.py": ["tests/core/data/test_step_plan.py"],
    "align/core/data/batch.py": ["tests/core/data/test_collate.py", "tests/core/data/test_batch.py"],
    "align/core/algorithm/policy_gradient.py": [
        "tests/core/algorithm/test_advantages.py",
        "tests/core/algorithm/test_policy_loss.py",
    ],
    "align/core/algorithm/importance_weights.py": ["tests/core/algorithm/test_importance_weights.py"],
    "align/core/algorithm/kl.py": [
        "tests/core/algorithm/test_policy_loss.py",
        "tests/core/algorithm/test_advantages.py",
    ],
    "align/core/algorithm/contract.py": [
        *("tests/core/data/test_batch.py", "tests/plugins/test_sft.py"),
        *("tests/plugins/test_dpo.py", "tests/plugins/test_reference_free.py"),
    ],
    "align/core/models/policy.py": ["tests/core/models/test_logprobs.py"],
    "align/core/engine/module.py": ["tests/core/engine/test_module.py", "tests/core/engine/test_step_metrics.py"],
    "align/core/engine/optimizer.py": ["tests/core/engine/test_module.py", "tests/core/engine/test_schedule.py"],
    "align/core/engine/steps.py": ["tests/core/engine/test_module.py"],
    "align/core/engine/checkpoint.py": ["tests/core/engine/test_checkpoint.py"],
    "align/core/training/run_directory.py": ["tests/core/training/test_inputs.py"],
}


def copy_tree(scratch: Path) -> None:
    """Copy the files that git tracks or does not ignore, as they are now, where they differ."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    for name in names:
        source, target = ROOT / name, scratch / name
        if source.is_file() and not (target.is_file() and target.read_bytes() == source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def configure(scratch: Path, module: str, tests: list[str]) -> None:
    """Append mutmut's settings to the copy's pyproject.toml."""
    settings = {
        "source_paths": ["align"],
        "only_mutate": [module],
        "do_not_mutate_patterns": ["raise "],
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "pytest_add_cli_args_test_selection": tests,
        # A server that has imported torch and collected the tests once forks a process for each mutant.
        "process_isolation": "forkserver",
        "timeout_multiplier": 10.0,
        "timeout_constant": 30.0,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (scratch / "pyproject.toml").write_text("\n".join([text, "[tool.mutmut]", *lines, ""]), encoding="utf-8")


def mutmut(scratch: Path, *arguments: str, show: bool = False) -> str:
    """Run a command of mutmut in the copy and return what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # the mutated copy must be what is imported
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(
        command, cwd=scratch, env=environment, check=False, text=True, stdout=None if show else subprocess.PIPE
    )
    if done.returncode:
        raise SystemExit(f"mutmut {' '.join(arguments)} failed: {done.stdout or ''}")
    return done.stdout or ""


def change(scratch: Path, mutant: str) -> dict[str, str]:
    """Return the function that a mutant is in and the lines that it changes."""
    diff = mutmut(scratch, "show", mutant).splitlines()
    old = [line[1:].strip() for line in diff if line.startswith("-") and not line.startswith("---")]
    new = [line[1:].strip() for line in diff if line.startswith("+") and not line.startswith("+++")]
    function = mutant.rsplit(".", 1)[1].partition("__mutmut")[0].removeprefix("x")
    return {"function": function.replace("ǁ", ".").strip("._"), "old": " ".join(old), "new": " ".join(new)}


def examine(scratch: Path, module: str, tests: list[str], children: int) -> dict[str, Any]:
    """Run the mutants of one module; return the counts and the survivors."""
    configure(scratch, module, tests)
    started = time.monotonic()
    mutmut(scratch, "run", "--max-children", str(children), show=True)
    states = [line.strip().rsplit(": ", 1) for line in mutmut(scratch, "results", "--all", "true").splitlines()]
    prefix = module.removesuffix(".py").replace("/", ".") + "."
    mine = {name: state for name, state in states if name.startswith(prefix)}
    counts = Counter(mine.values())
    survivors = [change(scratch, name) for name, state in mine.items() if state not in ("killed", "timeout")]
    return {
        "tests": tests,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "mutants": len(mine),
        "killed": counts["killed"] + counts["timeout"],
        "survivors": survivors,
    }


def with_reasons(found: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Give survivors that were there before the reason that was written down for them."""

    def key(survivor: dict[str, str]) -> tuple[str, str, str]:
        return survivor["function"], survivor["old"], survivor["new"]

    reasons = {key(survivor): survivor.get("why", "") for survivor in before.get("survivors", ())}
    survivors = [{**survivor, "why": reasons.get(key(survivor), "")} for survivor in found["survivors"]]
    return {**found, "survivors": survivors}


def main() -> None:
    """Examine the modules named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="default: every module of TESTS")
    parser.add_argument("--tests", nargs="+", help="run these instead of the tests that are paired with the module")
    parser.add_argument("--json", type=Path, help="results file to update")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "align-mutants")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, help="mutants tested at a time")
    arguments = parser.parse_args()
    known = (
        json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json and arguments.json.is_file() else {}
    )
    known["versions"] = {name: metadata.version(name) for name in ("mutmut", "pytest", "torch")}
    for module in arguments.modules or TESTS:
        # A copy each: mutmut remembers which files it has mutated and which tests reach them, not for which settings.
        scratch = arguments.scratch / module.removesuffix(".py").replace("/", ".")
        copy_tree(scratch)
        found = examine(scratch, module, arguments.tests or TESTS[module], arguments.children)
        found = {"date": time.strftime("%Y-%m-%d"), **with_reasons(found, known.get("modules", {}).get(module, {}))}
        known.setdefault("modules", {})[module] = found
        print(f"\n{module}: {found['killed']} of {found['mutants']} killed")
        for survivor in found["survivors"]:
            print(f"  {survivor['function']}\n    - {survivor['old']}\n    + {survivor['new']}\n    {survivor['why']}")
        if arguments.json:
            arguments.json.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
