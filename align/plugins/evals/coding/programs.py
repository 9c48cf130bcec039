"""Parts that evals of programs share: code out of a reply, a sandbox that several samples share, pass@k."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from align import AlignError, Eval
from align.evals import EvalSettings, Row, mean
from align.sandbox import Called, Sandbox, SandboxError, passes

Verdict = Literal["right", "wrong", "timeout"]
PASS_AT = (1, 2, 4, 5, 8, 10, 16, 32, 50, 64, 100)
"""The k of pass@k that are reported, where there are as many samples."""
LONGEST = 2**18
"""Characters of a program that is run."""


class ProgramEval(Eval):
    """Base class of evals whose completions are run: refuses to without permission, opens the sandbox, grades.

    ``run`` submits a completion's grading and yields no queries once, so that all samples of a round are graded at a
    time before the first result is waited for.
    """

    domain: ClassVar[Any] = "code"

    class Config(Eval.Config, EvalSettings):
        """Settings that these evals share."""

        allow_code_execution: bool = False
        """Programs that the model wrote may be run here, in the sandbox. Without it nothing is measured."""
        seconds: PositiveFloat = 6.0
        """Wall time of a run of one program."""
        memory: PositiveInt = Field(default=2048, ge=64)
        """Address space of a run in MiB."""
        parallel: PositiveInt | None = None
        """Programs run at a time; default: one for each processor."""

    config: Config
    _sandbox: Sandbox | None = None
    _pool: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Try the sandbox out. Raises AlignError where programs may not be run or cannot be isolated."""
        if not self.config.allow_code_execution:
            fix = "set allow_code_execution: true for this eval; programs run in align's sandbox (docs/code_reward.md)"
            raise AlignError(
                "runs programs that the model writes, which nobody allowed", fix, where=f"eval {self.name}"
            )
        self._sandbox = Sandbox.open(self.config.seconds, self.config.memory)
        self._pool = ThreadPoolExecutor(self.config.parallel or len(os.sched_getaffinity(0)), "align-eval-code")

    def submit(self, grade: Callable[[Sandbox], Verdict]) -> Future[Verdict]:
        """Grade in the background. The future raises AlignError where the sandbox fails: then nothing is known."""
        assert self._pool is not None and self._sandbox is not None, "open() comes first"
        return self._pool.submit(self._graded, grade, self._sandbox)

    def _graded(self, grade: Callable[[Sandbox], Verdict], sandbox: Sandbox) -> Verdict:
        try:
            return grade(sandbox)
        except SandboxError as error:
            raise AlignError(f"the sandbox failed: {error}", where=f"eval {self.name}") from error

    def called(self, sandbox: Sandbox, source: str, checks: Sequence[Called]) -> Verdict:
        """Return the verdict on a program by the results of calls, in one process for all of them."""
        room = sum(check.room for check in checks)
        until = time.monotonic() + self.config.seconds
        results = sandbox.calls(source, [check.call for check in checks], until, room)
        if results.stopped == "time":
            return "timeout"
        if results.stopped or results.forged:
            return "wrong"
        pairs = zip(checks, map(self.as_compared, results.trees), strict=True)
        return "right" if all(passes(check, tree, 0.0) for check, tree in pairs) else "wrong"

    def as_compared(self, tree: Any) -> Any:
        """Return a call's result (None: it gave none) as it is compared with the expected one: by default as it is."""
        return tree

    def aggregate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return ``score`` (pass@1), pass@k for the k that all items have samples for, and pass@1 of each tag.

        pass@k is the mean over items of 1 - C(n-c, k) / C(n, k), for c right samples of n (Chen et al. 2107.03374).
        """
        from align.rl import pass_at_k

        counts = right_of(rows)
        fewest = min(n for n, _ in counts.values())
        found = {"score": mean(pass_at_k(n, c, 1) for n, c in counts.values())}
        for k in PASS_AT:
            if k <= fewest:
                found[f"pass@{k}"] = mean(pass_at_k(n, c, k) for n, c in counts.values())
        for tag in dict.fromkeys(tag for row in rows for tag in row.tags):
            tagged = right_of([row for row in rows if tag in row.tags])
            found[tag] = mean(c / n for n, c in tagged.values())
        return found | {"timeout": mean(row.metrics.get("timeout", 0.0) for row in rows)}

    def close(self) -> None:
        """See ``Eval``; runs under way end by their deadlines."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def right_of(rows: Sequence[Row]) -> Mapping[str, tuple[int, int]]:
    """Return the number of samples and of right ones of each item."""
    counts: dict[str, tuple[int, int]] = {}
    for row in rows:
        n, c = counts.get(row.item_id, (0, 0))
        counts[row.item_id] = n + 1, c + (row.score == 1)
    return counts


def last_code(text: str) -> str | None:
    """Return the lines between the last two lines with a fence (LiveCodeBench's rule); None for fewer fences."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    if len(fences) < 2:
        return None
    return "\n".join(lines[fences[-2] + 1 : fences[-1]])
