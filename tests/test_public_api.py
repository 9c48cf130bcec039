"""Built-in plugins import public names alone; a list has their signatures; a change needs a line in the changelog."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import align

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLUGINS = sorted((ROOT / "align" / "plugins").rglob("*.py"))
STRANGERS = sorted((ROOT / "tests" / "strangers").rglob("*.py"))

spec = importlib.util.spec_from_file_location("public_api", ROOT / "tools" / "public_api.py")
assert spec is not None and spec.loader is not None
public_api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(public_api)

MODULES: tuple[str, ...] = public_api.MODULES
LOADS_TORCH = ("align.algorithms", "align.rl", "align.models", "align.loggers", "align.processes")


def imported(source: str, package: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for each import of align anywhere in the source; the name is empty for ``import align.x``.

    package: the one that relative imports start from.

    Imports in functions and under TYPE_CHECKING count, and so do modules that are imported by a call with their name.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if module.split(".")[0] == "align":
                yield from ((module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "align")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and str(argument.value).split(".")[0] == "align":
                yield str(argument.value), ""


def foreign(source: str, own: str = "", package: str = "") -> list[str]:
    """Return the imports of align that are not public, ``own`` (a plugin's module or package) excepted."""
    found = []
    for module, name in imported(source, package):
        if own and (module == own or module.startswith(f"{own}.")):
            continue
        if not is_public(module, name):
            found.append(f"{module}: {name}" if name else module)
    return found


def is_public(module: str, name: str) -> bool:
    """Return whether ``from module import name`` is public, or ``import module`` where the name is empty."""
    if module not in MODULES:
        return False
    submodule = f"{module}.{name}" in MODULES  # from align import rl
    return not name or submodule or name in public_api.public_names(importlib.import_module(module))


def own_package(path: Path) -> str:
    """Return the package of a built-in plugin: ``align.plugins.rewards.math`` for each of its files."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:4])


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_built_in_plugin_imports_what_is_public_and_its_own_package_alone(path: Path) -> None:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    assert foreign(path.read_text(encoding="utf-8"), own_package(path), package) == []


@pytest.mark.parametrize("path", STRANGERS, ids=lambda path: path.stem)
def test_a_plugin_of_others_imports_what_is_public_alone(path: Path) -> None:
    assert foreign(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_the_manual_import_what_is_public_alone(page: Path) -> None:
    for block in re.findall(r"```python[^\n]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        assert foreign(block) == [], block


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from align.core.data.batch import Batch", ["align.core.data.batch: Batch"]),
        ("def f():\n    import align.core.data", ["align.core.data"]),
        ("if TYPE_CHECKING:\n    from align.schemas.run import Run", ["align.schemas.run: Run"]),
        ("importlib.import_module('align.core')", ["align.core"]),
        ("from align import core", ["align: core"]),
        ("from align.rl import np", ["align.rl: np"]),
        ("from align import Algorithm, rl\nfrom align.rl import gae\nimport align.rl\nimport aligned", []),
    ],
)
def test_what_is_not_public_is_found(source: str, found: list[str]) -> None:
    assert foreign(source) == found


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(module: str) -> None:
    names = public_api.public_names(importlib.import_module(module))
    assert names and importlib.import_module(module).__doc__
    assert [name for name in names if not public_api.summary(module, name)] == []


def test_a_public_name_has_one_home() -> None:
    homes: dict[str, list[str]] = {}
    for module in MODULES:
        for name in public_api.public_names(importlib.import_module(module)):
            homes.setdefault(name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_type_checkers_see_the_names_that_are_imported_lazily() -> None:
    for module in ("align", "align.testing"):
        loaded = importlib.import_module(module)
        assert loaded.__file__
        body = ast.parse(Path(loaded.__file__).read_text("utf-8")).body
        (block,) = (node for node in body if isinstance(node, ast.If))
        imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
        seen = {(alias.name, node.module) for node in imports for alias in node.names}
        assert seen == set(loaded._HOME.items())


@pytest.mark.parametrize("module", [name for name in MODULES if name not in LOADS_TORCH])
def test_a_module_that_does_not_say_so_loads_no_torch(module: str) -> None:
    check = f"import {module}, sys; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_the_lists_and_the_reference_page_are_up_to_date() -> None:
    """Run ``nox -s api`` after a change of what is public, and look at the difference."""
    assert public_api.CURRENT.read_text("utf-8") == public_api.to_text(public_api.surface())
    assert public_api.PAGE.read_text("utf-8") == public_api.page()


def test_what_changed_since_the_last_release_is_in_the_changelog() -> None:
    before = public_api.from_text(public_api.RELEASED.read_text("utf-8"))
    after = public_api.from_text(public_api.CURRENT.read_text("utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    missing = public_api.unmentioned(public_api.changes(before, after), changelog)
    assert missing == [], "each needs a line under Unreleased in CHANGELOG.md, its name in backticks"


RELEASED = """[align]
Algorithm  class
Algorithm.loss  (self, batch: Batch) -> Outcome

[align.rl]
gae  (reward_T: Numbers, lam: float) -> Numbers

[run file]
train.batch_size  int = 8
algorithm grpo: beta  float = 0.0
"""


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("", "", []),
        ("lam: float", "lam: float = 1.0", ["gae"]),
        ("gae", "generalized", ["gae", "generalized"]),
        ("batch: Batch)", "batch: Batch, step: int)", ["Algorithm.loss"]),
        ("Algorithm", "Method", ["Algorithm", "Method"]),
        ("[align.rl]", "[align.online]", ["align.rl", "align.online"]),
        ("batch_size  int = 8", "batch_size  int = 16", ["batch_size"]),
        ("grpo: beta", "grpo: kl", ["beta", "kl"]),
    ],
)
def test_a_change_must_be_named_in_the_changelog(old: str, new: str, names: list[str]) -> None:
    changed = public_api.changes(*(public_api.from_text(text) for text in (RELEASED, RELEASED.replace(old, new))))
    assert changed == names
    earlier = "# Changelog\n\n## Unreleased\n\n## 1.0\n\n- `gae`, `Algorithm.loss`\n"
    assert public_api.unmentioned(changed, earlier) == names
    line = "- " + " and ".join(f"`align.{name.removeprefix('align.')}`" for name in names) + " changed."
    assert public_api.unmentioned(changed, f"# Changelog\n\n## Unreleased\n\n{line}\n\n## 1.0\n") == []


def test_a_member_is_named_with_its_class() -> None:
    assert public_api.unmentioned(["Algorithm.loss"], "## Unreleased\n\n`loss` and `Algorithm`\n") == ["Algorithm.loss"]


def test_the_list_survives_being_written() -> None:
    assert public_api.to_text(public_api.from_text(RELEASED)) == RELEASED


def test_top_level_names_are_those_of_the_reference_page() -> None:
    page = public_api.PAGE.read_text("utf-8")
    assert set(align.__all__) <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
