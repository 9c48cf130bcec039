"""``code``: model-written Python is run in a sandbox and judged outside it.

    score = 1 if all tests pass else 0   (or: tests passed / tests)

What runs with the model's code knows the tests' inputs and never what should come out: results leave as typed values
over a channel of their own and are compared here. So an answer may do what it likes in its process (exit, patch, trace,
forge results): all it can change is which values it gives. Exit codes mean nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from align import Answer, Reward, Score
from align.rewards import RewardContext
from align.sandbox import Called, Check, Piped, Sandbox, SandboxError, UnusableTest, passes, prints, read_checks

PYTHON = ("python", "python3", "py")
"""Languages of a fence that mark its block as Python."""
LONGEST = 2**20
"""Characters of code that are run; more could not be loaded within the memory that a run has."""


class Code(Reward):
    """Tests passed by the Python in an answer.

    Answers without code score 0 (``unparsed``); so do those that take too long (``timeout``) or print too much,
    whatever passed before, as else the order of tests would matter: to hang must not be better than to be wrong. Only
    a sandbox that fails to start gives no score (``error``).
    """

    name: ClassVar[str] = "code"
    required_columns: ClassVar[tuple[str, ...]] = ("tests",)

    class Config(Reward.Config):
        """Settings of finding, running and scoring code."""

        score: Literal["all", "fraction"] = "all"
        """``all``: 1 where every test passes, else 0. ``fraction``: the share of tests that pass."""
        code: Literal["fenced", "whole"] = "fenced"
        """``fenced``: the last complete block fenced as Python (unmarked, where none is). ``whole``: all the text."""
        seconds: PositiveFloat = 5.0
        """Wall time for one answer with all its tests."""
        memory: PositiveInt = Field(default=512, ge=64)
        """Address space of a run in MiB, the interpreter's 30 included."""
        tolerance: NonNegativeFloat = 1e-6
        """Relative and absolute difference at which floats still agree, where a test does not give its own."""
        parallel: PositiveInt | None = None
        """Answers run at a time, over all ranks; default: one for each processor."""

    config: Config
    _sandbox: Sandbox | None = None
    _pool: ThreadPoolExecutor | None = None
    _accelerator: str = "cpu"

    @property
    def overlaps(self) -> bool:
        """True next to a GPU. On a CPU generation would take the processor from code whose wall time is limited."""
        return self._accelerator == "cuda"

    def open(self, place: RewardContext) -> None:
        """Try the sandbox out. Raises AlignError where code cannot be isolated."""
        self._accelerator = place.accelerator
        self._sandbox = Sandbox.open(self.config.seconds, self.config.memory)
        parallel = self.config.parallel or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(max(1, parallel // place.world_size), "align-code")

    def unfit(self, columns: Mapping[str, Any]) -> str | None:
        """Return why a row's tests cannot be used; None where they can."""
        if (lacking := super().unfit(columns)) is not None:
            return lacking
        try:
            read_checks(columns)
        except UnusableTest as error:
            return str(error)
        return None

    def score(self, answers: Sequence[Answer]) -> Sequence[Score]:
        """Run every answer's code, several at a time, each with a deadline of its own."""
        assert self._pool is not None, "open() comes first"
        return list(self._pool.map(self._score, answers))

    def _score(self, answer: Answer) -> Score:
        source = answer.text if self.config.code == "whole" else last_block(answer.text)
        if source is None or not source.strip():
            return Score(0.0, "unparsed", why="has no complete block of Python code")
        if len(source) > LONGEST:
            return Score(0.0, "wrong", {"tests": 0.0}, f"has more than {LONGEST} characters of code")
        try:
            checks = read_checks(answer.columns)
            passed, stopped = self._passed(source, checks)
        except (UnusableTest, SandboxError) as error:
            return Score(None, "error", why=str(error))
        share = passed / len(checks)
        parts = {"tests": share}
        if stopped == "time":
            return Score(0.0, "timeout", parts, f"took longer than {self.config.seconds:g} s")
        if stopped:
            return Score(0.0, "wrong", {"tests": 0.0}, stopped)
        why = "" if share == 1 else f"{passed} of {len(checks)} tests passed"
        value = share if self.config.score == "fraction" else float(share == 1)
        return Score(value, "right" if share == 1 else "wrong", parts, why)

    def _passed(self, source: str, checks: Sequence[Check]) -> tuple[int, str]:
        """Return the number of tests passed, and why the answer fails as a whole ("" where it does not)."""
        assert self._sandbox is not None
        until, near, passed = time.monotonic() + self.config.seconds, self.config.tolerance, 0
        called = [check for check in checks if isinstance(check, Called)]
        if called:
            room = sum(check.room for check in called)
            results = self._sandbox.calls(source, [check.call for check in called], until, room)
            if results.forged:
                return 0, "wrote into the harness's channel"
            if results.stopped:
                return 0, _stopped(results.stopped)
            passed += sum(passes(check, tree, near) for check, tree in zip(called, results.trees, strict=True))
        for check in checks:
            if isinstance(check, Piped):
                run = self._sandbox.program(source, check.stdin, until, 2 * len(check.stdout))
                if run.stopped:
                    return 0, _stopped(run.stopped)
                passed += prints(run.output, check.stdout, near)
        return passed, ""

    def close(self) -> None:
        """Stop; runs under way end by their deadlines."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _stopped(why: str) -> str:
    return "time" if why == "time" else "wrote too much"


def last_block(text: str) -> str | None:
    """Return the last complete fenced block marked as Python, or the last unmarked one where none is; else None.

    An answer whose last fence is left open (it was cut off) has no code.
    """
    marked: str | None = None
    unmarked: str | None = None
    language = ""
    block: list[str] | None = None
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if block is None and bare.startswith("```"):
            language, block = bare.strip("`").strip().lower(), []
        elif block is not None and bare == "```":
            if language in PYTHON:
                marked = "".join(block)
            elif not language:
                unmarked = "".join(block)
            block = None
        elif block is not None:
            block.append(line)
    if block is not None:
        return None
    return unmarked if marked is None else marked
