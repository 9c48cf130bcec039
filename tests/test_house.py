"""Rules of the house that a machine can keep."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pluggy
import pytest
from click.testing import CliRunner

import align
from align import hookspecs
from align.cli import COMMANDS, main
from align.core.plugin_system.registry import KINDS

ROOT = Path(__file__).parents[1]
HOOKS = [name for name, thing in vars(hookspecs).items() if hasattr(thing, "align_spec")]
HEAVY = ("torch", "lightning", "transformers", "datasets", "peft", "scipy", "sklearn", "numpy")


def tracked() -> list[Path]:
    """What is, or would be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize(
    "code",
    [
        "import align",
        "from align.cli import main; main(['--help'], standalone_mode=False)",
        "from align.cli import main; main(['plugins', 'list'], standalone_mode=False)",
        "from align.cli import main; main(['plugins', 'list', '--json'], standalone_mode=False)",
        "from align.cli import main; main(['train', '--help'], standalone_mode=False)",
        "from align.cli import main; main(['advise', '--help'], standalone_mode=False)",
    ],
)
def test_what_answers_at_once_imports_nothing_heavy(code: str) -> None:
    assert _heavy(code) == []


def test_advice_imports_numpy_alone_to_read() -> None:
    call = "main(['advise', '--text', 'It must keep 27 rules.'], standalone_mode=False)"
    assert _heavy(f"from align.cli import main\ntry: {call}\nexcept SystemExit: pass") == ["numpy"]


def _heavy(code: str) -> list[str]:
    """Return the heavy modules that code imports."""
    check = f"{code}\nimport sys; print('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


TRAINS_OR_ADAPTS = ("lightning", "torchmetrics", "peft", "datasets")
"""Imports of runs that train, of adapters and of other files than JSONL; together they take more than a second."""


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        (["train", "run.yaml", "--check", "--quiet"], TRAINS_OR_ADAPTS),
        (["estimate", "run.yaml"], TRAINS_OR_ADAPTS),
        (["sample", "MODEL", "hello", "--quiet"], TRAINS_OR_ADAPTS),
        (["data", "check", "rows.jsonl", "--quiet"], (*TRAINS_OR_ADAPTS, "torch", "transformers", "pyarrow")),
        (["data", "check", "rows.jsonl", "--model", "MODEL", "--quiet"], TRAINS_OR_ADAPTS),
        (["data", "show", "rows.jsonl", "--model", "MODEL"], TRAINS_OR_ADAPTS),
        (["eval", "list"], HEAVY),
        (["reward", "list"], HEAVY),
        (["--help"], ("pydantic", "yaml")),
        (["train", "--help"], ("pydantic", "yaml")),
        (["advise", "--help"], ("pydantic", "yaml")),
        (["plugins", "list"], ("yaml", "align.schemas.run")),
        (["advise", "--text", "It must keep 27 rules.", "--exit-zero"], ("align.schemas.run", "align.core.inference")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_what_it_uses(
    command: list[str], absent: tuple[str, ...], tiny_model_dir: Path, tmp_path: Path
) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    data = {"train": "rows.jsonl", "max_length": 64}
    model, train = {"path": str(tiny_model_dir)}, {"max_steps": 1, "batch_size": 2}
    stage = {"name": "sft", "algorithm": {"type": "sft"}, "model": model, "data": data, "train": train}
    (tmp_path / "run.yaml").write_text(json.dumps({"output": "out", "stages": [stage]}))
    arguments = [str(tiny_model_dir) if word == "MODEL" else word for word in command]
    check = "import atexit, sys; from align.cli import main\n"
    check += f"atexit.register(lambda: print('FOUND', [name for name in {absent!r} if name in sys.modules]))\n"
    check += f"main({arguments!r}, standalone_mode=False)"  # may end the process itself
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("FOUND []\n"), done.stdout + done.stderr


def test_advice_reads_no_docstring_and_neither_imports_nor_the_end_search_for_garbage() -> None:
    check = "import atexit, gc, linecache, sys\n"
    check += "import align.cli\n"  # the searches before a command is known are its own
    check += "before = gc.get_stats()[2]['collections']\n"
    check += "read = lambda: [name for name in linecache.cache if '/align/' in name]\n"
    check += "spared = lambda: gc.get_freeze_count() >= len(gc.get_objects())\n"
    check += "atexit.register(lambda: print('FOUND', read(), gc.get_stats()[2]['collections'] - before, spared()))\n"
    check += "align.cli.main(['advise', '--text', 'It must keep 27 rules.', '--exit-zero'], standalone_mode=False)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("FOUND [] 0 True\n"), done.stdout + done.stderr


def test_help_lists_every_command_and_loads_none() -> None:
    check = "from align.cli import main; import sys; main(['--help'], standalone_mode=False)\n"
    check += "print([name for name in sys.modules if name.startswith('align.cli.')])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name, (_, summary) in COMMANDS.items() if summary)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", [["plugins", "list"], ["advise", "--text", "It must keep 27 rules."]])
def test_answering_touches_neither_network_nor_disk_nor_other_programs(command: list[str]) -> None:
    watch = f"""
import sys
seen = []
def hook(event, arguments):
    if event in ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.remove", "os.rename"):
        seen.append(event)
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append(arguments)
sys.addaudithook(hook)
from align.cli import main
try:
    main({command!r}, standalone_mode=False)
except SystemExit:
    pass
print("SEEN", seen)
"""
    done = subprocess.run([sys.executable, "-B", "-c", watch], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("SEEN []\n"), done.stdout


def test_a_message_cannot_command_the_terminal() -> None:
    done = CliRunner().invoke(main, ["train", "\x1b[31m\x1b]0;title\x07no.yaml"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert (
        done.stderr
        == "]0;titleno.yaml\n    cannot be read: No such file or directory\n    give the path of a run file\n"
    )


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Algoritm'"):
        align.Algoritm  # noqa: B018
    assert align.__version__ and "Algorithm" in dir(align)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_exact_signature_and_tested(hook: str) -> None:
    signature = f"{hook}({', '.join(inspect.signature(getattr(hookspecs, hook)).parameters)})"
    assert f"\n### {signature}\n" in (ROOT / "docs/plugins.md").read_text()
    assert re.search(
        rf"def test_\w*{hook}|\"{hook}\"", (ROOT / "tests/core/plugin_system/test_registry.py").read_text()
    )


def test_the_documentation_names_no_hook_that_is_not_there() -> None:
    headings = re.findall(r"^### (\w+)\(", (ROOT / "docs/plugins.md").read_text(), re.MULTILINE)
    assert headings == HOOKS, "in the order of hookspecs"
    assert {kind.hook for kind in KINDS.values()} == {hook for hook in HOOKS if hook.startswith("register_")}


def test_the_examples_of_the_documentation_are_plugins() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/plugins.md").read_text(), re.DOTALL)
    blocks = [block for block in blocks if "hookimpl" in block]
    assert len(blocks) == 18
    for number, source in enumerate(blocks):
        manager = pluggy.PluginManager("align")
        manager.add_hookspecs(hookspecs)
        module = types.ModuleType(f"example_{number}")
        exec(source, vars(module))
        manager.register(module)
        manager.check_pending()
        assert manager.get_hookcallers(module)


@pytest.mark.parametrize("command", [name for name, (_, summary) in COMMANDS.items() if summary])
def test_every_command_is_documented(command: str) -> None:
    pages = [path.read_text() for path in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]]
    assert any(re.search(rf"\balign {command}\b", page) for page in pages)


def test_nothing_in_the_tree_speaks_of_one_machine() -> None:
    machine = re.compile(r"/(wor[k]|roo[t]|hom[e]|farm|mn[t])/\w|/tmp/brie[f]|/op[t]/(pypi|wheels)|file://[/]")
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(text.splitlines(), 1) if machine.search(line)
        ]
    assert found == []


def test_the_readme_and_ci_give_the_same_test_command() -> None:
    command = 'python -m pip install -e ".[test]" && pytest -n auto --dist loadfile'
    assert command in (ROOT / "README.md").read_text()
    assert f"test_command='{command}'" in (ROOT / ".ci/run").read_text()


def test_the_lock_is_within_what_pyproject_allows() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    locked = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["test"], *extras["tensorboard"], *extras["docs"]]:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        if name != "align-llm":
            assert name in locked and wanted.specifier.contains(locked[name]), line
            assert any(bound.operator == "<" for bound in wanted.specifier) or name.startswith("types-"), line
