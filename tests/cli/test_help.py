"""Help pages, shell completion, and the commands and options that messages and manuals name."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from align.cli import COMMANDS, main
from align.cli.advise import init

HOME = Path(__file__).parents[2]
INTRODUCED = re.compile(r"^\s*Example:\n((?:.*\n?)+)", re.MULTILINE)


def load(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name][0].partition(":")
    found: click.Command = getattr(importlib.import_module(module), attribute)
    return found


def below(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield words, command
    for name, inner in sorted(command.commands.items()) if isinstance(command, click.Group) else ():
        yield from below(f"{words} {name}", inner)


EVERY = {
    words: command
    for name in COMMANDS
    for words, command in below(name, load(name))
} | {"advise init": init, "": main}  # fmt: skip
"""Every command and group, by its words."""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that `align worker` may name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)


def parse(words: list[str]) -> None:
    """Parse a command line down to its command, and run nothing. Raises what click does for what is wrong in it."""
    path, command = "", EVERY[""]
    while words and (inner := EVERY.get(f"{path} {words[0]}".strip())):
        path, command, words = f"{path} {words[0]}".strip(), inner, words[1:]
    if command is main:
        raise click.UsageError(f"no command: {words[:1]}")
    if not isinstance(command, click.Group) or words:
        with command.make_context(f"align {path}", list(words)):
            pass


@pytest.mark.parametrize("words", EVERY)
@pytest.mark.usefixtures("started")
def test_a_help_page_has_examples_that_parse_and_describes_every_parameter(words: str) -> None:
    command = EVERY[words]
    page = CliRunner().invoke(main, [*words.split(), "--help"], env={"COLUMNS": "200"})
    assert page.exit_code == 0, page.output
    examples = INTRODUCED.search(command.help or "")
    assert examples, f"align {words} has no example"
    lines = [line.strip() for line in examples[1].splitlines() if line.strip()]
    assert lines and any(line.startswith(f"align {words}".strip()) for line in lines)
    shown = [line.strip() for line in page.output.splitlines()]
    assert "Example:" in shown and "\\b" not in page.output and "\b" not in page.output
    for line in lines:
        assert line in shown, "shown as it is written, on a line of its own"
        parse(shlex.split(line.partition(" > ")[0])[1:])
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"align {words}: {parameter.name} is not described"
        if isinstance(parameter, click.Argument):
            assert " ".join(parameter.help.split()) in " ".join(re.sub(r"[│╭╮╰╯─]", " ", page.output).split())


# Names in messages and manuals

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w-])")
COMMAND = re.compile(r"(?<![\w./-])align((?: [a-z]+)+)([^`\n);]*)")
QUOTED = re.compile(r"(?:`|^\$ |^ {4,})align ([a-z]+)", re.MULTILINE)
FOREIGN = {
    "torchrun": "--nnodes --nproc-per-node --rdzv-endpoint --standalone --rdzv-backend --rdzv-id --max-restarts "
    "--shutdown-timeout --signals-to-handle --rdzv-conf",
    "vllm": "--enable-scale-out --logprobs-mode --generation-config --worker-extension-cls --middleware --host --port "
    "--weight-transfer-config --enable-lora --lora-modules --lora-target-modules --max-lora-rank "
    "--no-enable-log-requests --ssl-keyfile --ssl-certfile",
    "pytest": "--dist",
    "pip": "--no-deps",
    "sbatch and srun": "--signal --ntasks-per-node --gpus-per-node --gpus-per-task --gpu-bind --qos --requeue "
    "--het-group --cpus-per-task --kill-on-bad-exit",
    "squeue": "--noheader --jobs",
    "nvidia-smi": "--query-gpu",
    "docker and bwrap": "--security-opt --shm-size",
    "benchmarks/side_by_side.py": "--bf16",
    "benchmarks/gpu/run.py": "--groups",
    "a diagram": "--compare",
}
"""Options of other programs that our texts name."""
OWN = {name for command in EVERY.values() for each in command.params for name in (*each.opts, *each.secondary_opts)}
OTHERS = {"--help", "--version", *(option for options in FOREIGN.values() for option in options.split())}


def strings() -> Iterator[tuple[str, str]]:
    """(file:line, text) of every string in the package; of an f-string what is fixed in it, with X between."""
    for file in sorted((HOME / "align").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            where = f"{file.relative_to(HOME)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                fixed = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
                yield where, "".join(map(str, fixed))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                yield where, node.value


def manuals() -> Iterator[tuple[str, str]]:
    files = [HOME / "README.md", *(HOME / "docs").glob("*.md"), *(HOME / "recipes").rglob("*.yaml")]
    for file in sorted(files):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{file.relative_to(HOME)}:{number}", line


TEXTS = [*strings(), *manuals()]


def test_the_texts_are_looked_through() -> None:
    assert len(TEXTS) > 10_000
    assert sum("align train" in text for _, text in TEXTS) > 20 and sum("--emit" in text for _, text in TEXTS) > 5


def test_every_option_that_a_text_names_exists() -> None:
    texts = [each for each in TEXTS if not each[0].startswith("align/schemas/renamed.py")]  # it lists what is gone
    named = [(where, option) for where, text in texts for option in OPTION.findall(text)]
    assert [(where, option) for where, option in named if option not in OWN | OTHERS] == []


def test_every_command_that_a_text_names_exists() -> None:
    unknown = [
        (where, name) for where, text in TEXTS for name in QUOTED.findall(text) if name not in {*COMMANDS, "itself"}
    ]
    for where, text in TEXTS:
        for words, rest in COMMAND.findall(text):
            first, *more = words.split()
            command = EVERY.get(first)
            if isinstance(command, click.Group) and more and f"{first} {more[0]}" in EVERY:
                command = EVERY[f"{first} {more[0]}"]
            elif isinstance(command, click.Group) and more and f"`align {words.strip()}" in text:
                unknown.append((where, words))
            if command is not None:
                has = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | OTHERS
                unknown += [(where, f"{words} {option}") for option in OPTION.findall(rest) if option not in has]
    assert unknown == []


@pytest.mark.parametrize("file", sorted((HOME / "align" / "cli").glob("*.py")), ids=lambda file: file.stem)
def test_a_commands_own_messages_name_its_own_options(file: Path) -> None:
    """What ``align.cli.data_label`` says is about ``align data label``."""
    module = f"align.cli.{file.stem}"
    mine = [command for command in EVERY.values() if getattr(command.callback, "__module__", "") == module]
    if file.stem in ("__init__", "choices", "advise_model") or not mine:
        return
    own = {name for command in mine for each in command.params for name in (*each.opts, *each.secondary_opts)}
    texts = [COMMAND.sub("", text) for where, text in TEXTS if where.startswith(f"align/cli/{file.name}:")]
    said = {option for text in texts for option in OPTION.findall(text)}
    assert said <= own | OTHERS


def test_a_form_that_is_there_is_not_said_to_give_way_to_an_option_that_init_lacks(tmp_path: Path) -> None:
    (tmp_path / "brief.yaml").write_text("mine\n")
    done = CliRunner().invoke(main, ["advise", "init", str(tmp_path / "brief.yaml")])
    assert done.exit_code == 2 and "is there already\n    choose another name\n" in done.output
    assert (tmp_path / "brief.yaml").read_text() == "mine\n"
    saved = CliRunner().invoke(main, ["advise", "--text", "x", "--save", str(tmp_path / "brief.yaml")])
    assert saved.exit_code == 2 and "or add --force" in saved.output


# Completion by the shell, through the protocol of click's scripts

SHELLS = {"bash": "complete -o nosort -F", "zsh": "compdef", "fish": "complete --no-files --command align"}


def completed(shell: str, line: str) -> list[str]:
    """What ``align`` offers where TAB is pressed at the end of ``line``; fish is told the last word alone."""
    words = line.split(" ")
    words_so_far = line if shell != "fish" else " ".join(words[:-1])
    position = words[-1] if shell == "fish" else str(len(words) - 1)
    asked = {"_ALIGN_COMPLETE": f"{shell}_complete", "COMP_WORDS": words_so_far, "COMP_CWORD": position}
    done = CliRunner().invoke(main, [], env=asked, prog_name="align")
    assert done.exit_code == 0 and done.stderr == "", done.output
    lines = done.stdout.splitlines()
    if shell == "zsh":  # type, value and help take a line each
        return lines[1::3]
    return [text.replace("\t", ",").split(",")[1] for text in lines if text]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_completes_commands_options_choices_and_names(shell: str) -> None:
    source = CliRunner().invoke(main, [], env={"_ALIGN_COMPLETE": f"{shell}_source"}, prog_name="align")
    assert (
        source.exit_code == 0
        and SHELLS[shell] in source.stdout
        and f"_ALIGN_COMPLETE={shell}_complete" in source.stdout
    )
    assert completed(shell, "align tr") == ["train"]
    assert completed(shell, "align data ") == ["check", "label", "show"]
    assert completed(shell, "align train run.yaml --re") == ["--resume", "--reason"]
    assert completed(shell, "align data check --kind pre") == ["preference"]
    assert completed(shell, "align plugins show online_") == ["online_dpo"]
    assert completed(shell, "align reward audit mat") == ["math"]
    assert completed(shell, "align advise ini")[0] == "init"
    assert "train" in completed(shell, "align trian "), "and no message in the middle of a line"


def test_completion_is_documented() -> None:
    page = (HOME / "docs" / "quickstart.md").read_text()
    for shell in SHELLS:
        assert f"_ALIGN_COMPLETE={shell}_source align" in page


def test_a_pipe_that_closes_is_no_traceback() -> None:
    script = f"{shlex.quote(sys.executable)} -m align plugins list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and done.stdout.startswith("KIND")
