"""The files around the code: continuous integration, templates, pre-commit, task runner, contributors' pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = ["AGENTS.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
NAMED = re.compile(r"`((?:align|tests|docs|tools|benchmarks|recipes|\.ci)/[\w./-]*)`")
"""A path of the repository in backticks."""


def parsed(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def locked(name: str) -> str:
    """Return ``name==version`` as constraints.txt has it."""
    (line,) = re.findall(rf"^{name}==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(line)


def test_hosted_ci_runs_what_a_developer_runs() -> None:
    workflow = parsed(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] and "latest" not in job["runs-on"]
        uses = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in uses), "pinned to a commit"
        assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    limits = [int(minutes) for minutes in re.findall(r"^step (\d+) ", (ROOT / ".ci/run").read_text(), re.MULTILINE)]
    assert sum(limits) < workflow["jobs"]["ci"]["timeout-minutes"]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(form: Path) -> None:
    content = parsed(str(form.relative_to(ROOT)))
    assert {"name", "description", "body"} <= content.keys() <= {"name", "description", "body", "labels", "title"}
    ids = [field["id"] for field in content["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    for field in content["body"]:
        assert field.keys() <= {"type", "id", "attributes", "validations"}
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert "value" in field["attributes"] if field["type"] == "markdown" else field["attributes"]["label"]
        assert field["attributes"].get("options") or field["type"] != "dropdown"
    assert parsed(".github/ISSUE_TEMPLATE/config.yml").keys() <= {"blank_issues_enabled", "contact_links"}


def test_pre_commit_uses_the_linter_that_ci_uses() -> None:
    hooks = [hook for repository in parsed(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    pinned = {requirement for hook in hooks for requirement in hook["additional_dependencies"]}
    assert locked("ruff") in pinned
    assert all("==" in requirement for requirement in pinned)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_files_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = {str((ROOT / page).parent / target) for target in re.findall(r"\]\(([^)#:]+)\)", text)}
    missing = [name for name in {*NAMED.findall(text), *linked} if not (ROOT / name).exists()]
    assert sorted(missing) == []


def test_contributors_are_told_how_to_add_every_kind_of_plugin() -> None:
    from align.core.plugin_system.registry import KINDS

    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page[page.index("## How to add") : page.index("## How we write")]
    waiting = {"register_evals", "register_commands"}  # the first has no reader yet; align's commands are no plugins
    assert {kind.hook for kind in KINDS.values()} - waiting <= set(re.findall(r"`(register_\w+)`", table))


def test_the_fast_tests_are_there() -> None:
    listed = (ROOT / "tests/fast.txt").read_text(encoding="utf-8").split()
    assert listed == sorted(set(listed)) and [path for path in listed if not (ROOT / path).exists()] == []


def test_the_task_runner_has_the_commands_that_pages_name() -> None:
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE))
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md")]
    named = {session for page in pages for session in re.findall(r"nox -s (\w+)", page)}
    assert {"fast", "tests", "docs", "ci"} <= named <= sessions


def test_changes_are_collected_under_unreleased() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", changelog, re.MULTILINE)[0] == "Unreleased"
    sections = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for release in re.split(r"^## .*$", changelog, flags=re.MULTILINE)[1:]:
        found = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert found and found == [name for name in sections if name in found]


def test_the_manual_is_built_strictly_and_its_links_are_checked() -> None:
    config = parsed("mkdocs.yml")
    checks = {**config["validation"]["nav"], **config["validation"]["links"]}
    assert {"not_found", "anchors", "omitted_files"} <= checks.keys() and set(checks.values()) == {"warn"}
    assert "mkdocs build --strict" in (ROOT / ".ci/run").read_text()


def test_every_renamed_key_is_in_the_changelog() -> None:
    """With its section's line, ``- `train`: `epochs` → `num_train_epochs`, ...``, which may go over several lines."""
    from align.schemas.renamed import RENAMED, RENAMED_METRICS

    items = [" ".join(item.split()) for item in re.split(r"^ *- ", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)]
    for section, names in RENAMED.items():
        told = " ".join(item for item in items if item.startswith(f"`{section}`:"))
        assert [old for old, new in names.items() if f"`{old}` → `{new}`" not in told] == [], section
    for old, new in RENAMED_METRICS.items():
        assert any(f"`{old}` → `{new}`" in item for item in items), old
