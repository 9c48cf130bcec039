"""Measure how readable the tree is: `python tools/legibility.py [--json FILE] [--no-walk]`.

A walk lists the files of `align` in which a function is called, in order of the first call. Two are of `align train`,
for SFT and for GRPO on a tiny model made here, from the command's first line to the moment its export is written and
recorded; one is of `align advise` on a brief, to the command's end. Outside them are command-line parsing, whatever an
import calls (a decorator, a comprehension in a module's or class's body), what follows the export (the summary on the
terminal), and processes of their own (reward workers). docs/architecture.md names the files of all three. The rest is
read from the source: names used more than once, docstrings that open with a relative clause, comments, the longest
function.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import threading
import tokenize
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "align"
RELATIVE = re.compile(r"(What|Whether|Where|How|Of|Who|Whom|Whose|Which|When)\b")
WALKED = ("sft", "grpo", "advice")
BRIEF = """We answer customers of a bank by e-mail, and each answer must keep 27 rules of style. There are 4,000 pairs
of letters and answers, and two H100 for Qwen3-8B. With our best prompt 62 % keep all rules, and 90 % are needed.
"""


class Walk:
    """The files of the package in which a function is called, in order of the first call, each with its functions.

    first: file and function that begin it, the body of a command. last: the function whose return ends it; None: the
    end of the block does.
    """

    def __init__(self, first: tuple[str, str], last: str | None) -> None:
        self.first, self.last = first, last
        self.files: dict[str, set[str]] = {}
        self._under_way = False

    def __enter__(self) -> Walk:
        threading.setprofile(self._event)
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)):
            return
        file = str(Path(code.co_filename).relative_to(ROOT))
        if event == "return":
            self._under_way &= code.co_qualname != self.last
            return
        self._under_way |= (file, code.co_qualname) == self.first
        if self._under_way and code.co_qualname not in self.files.get(file, ()) and not _importing(frame):
            self.files.setdefault(file, set()).add(code.co_qualname)


def _importing(frame: FrameType | None) -> bool:
    """Return whether a frame is the body of a module or class of the package, or was called by one."""
    while frame is not None:
        code = frame.f_code
        # Only functions are compiled with CO_OPTIMIZED (1); the bodies of modules and classes run once, at import.
        if code.co_filename.startswith(str(PACKAGE)) and not code.co_flags & 1:
            return True
        frame = frame.f_back
    return False


def walk(what: str) -> dict[str, list[str]]:
    """Return the files called by `align train` on one small stage (what: its algorithm) or by `align advise`.

    Each has the functions that were called. ``advice`` walks the latter.
    """
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        os.environ["ALIGN_CACHE"] = str(scratch / "cache")  # tokens from an earlier walk would leave files out
        walked = _advice(scratch) if what == "advice" else _training(what, scratch)
    return {file: sorted(names) for file, names in walked.files.items()}


def _training(algorithm: str, scratch: Path) -> Walk:
    from align.cli import main
    from align.core.config import run_file
    from tests.core.runs import run_for, write_rows
    from tests.tiny import save_tiny

    save_tiny(scratch / "model")
    rows = write_rows(algorithm, scratch / "rows.jsonl")
    run = run_for(algorithm, scratch / "model", rows, scratch / "run", train={"max_steps": 4, "num_train_epochs": 1})
    (scratch / "run.yaml").write_text(run_file.dump(run))
    # The last function records the export, which is on disk by then.
    with Walk(("align/cli/train.py", "train"), "StageDirectory.finish") as walked:
        main(["train", str(scratch / "run.yaml"), "--quiet"], standalone_mode=False)
    return walked


def _advice(scratch: Path) -> Walk:
    from align.cli import main

    (scratch / "brief.md").write_text(BRIEF)
    command = ["advise", str(scratch / "brief.md"), "--exit-zero"]
    walked = Walk(("align/cli/advise.py", "advise"), None)
    # The command ends by sys.exit, with its status.
    with walked, contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(command, standalone_mode=False)
    return walked


def _docstring_owners(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    """Return every documented module, class and function with its docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [(node, ast.get_docstring(node)) for node in ast.walk(tree) if isinstance(node, documented)]
    return [(node, text) for node, text in found if text]


def source_figures() -> dict[str, Any]:
    """Return the figures that are read from the source."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = collections.Counter(file.name for file in files if file.name != "__init__.py")
    classes: collections.Counter[str] = collections.Counter()
    docstrings = relative = code_lines = comments = lines = nodes = 0
    longest = (0, "")
    for file in files:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines += text.count("\n")
        for node in ast.walk(tree):
            nodes += 1
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name] += 1
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                longest = max(longest, (size, f"{file.relative_to(ROOT)}::{node.name}"))
        for _, doc in _docstring_owners(tree):
            docstrings += 1
            relative += bool(RELATIVE.match(doc))
        with tokenize.open(file) as opened:
            tokens = list(tokenize.generate_tokens(opened.readline))
        comments += sum(token.type == tokenize.COMMENT for token in tokens)
        skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        code_lines += len({token.start[0] for token in tokens if token.type not in skipped})
    return {
        "files": len(files),
        "lines": lines,
        "longest_file": max((file.read_text().count("\n"), str(file.relative_to(ROOT))) for file in files),
        "longest_function": longest,
        "file_names_used_more_than_once": {name: n for name, n in sorted(names.items()) if n > 1},
        "class_names_used_more_than_once": {name: n for name, n in sorted(classes.items()) if n > 1},
        "docstrings": docstrings,
        "docstrings_with_relative_clause": relative,
        "relative_percent": round(100 * relative / docstrings, 2),
        "comments_per_100_lines": round(100 * comments / lines, 2),
        "nodes_per_code_line": round(nodes / code_lines, 2),
    }


def main() -> None:
    """Print the figures, or write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--no-walk", action="store_true", help="read the source only; takes a second")
    options = parser.parse_args()
    figures = source_figures()
    if not options.no_walk:
        walks = {what: walk(what) for what in WALKED}
        figures |= {f"walk_{name}": {"count": len(files), "files": files} for name, files in walks.items()}
    for name, value in figures.items():
        print(f"{name}: {value['count'] if name.startswith('walk_') else value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
