"""The promises of every reward, checked without knowing what it is for."""

from __future__ import annotations

import builtins
import copy
import functools
import importlib
import inspect
import math
import os
import pickle
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from align.core.plugin_system.registry import config_of
from align.core.rewards.reward_base import Answer, Reward, RewardContext, Score, from_function
from align.core.util import child_processes

Plugin = type[Reward] | Callable[..., Any]

_ELSEWHERE = "in another process (hash() of text and the order of a set differ in each; use hashlib, and sort)"
_CHILD_SECONDS = 300.0
_CHILD = """
import pickle, sys
from align.testing.reward_checks import score_here
given = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps(score_here(*given)))
"""


def check_reward(
    reward: Plugin, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None = None, tolerance: float = 0.0
) -> list[Score]:
    """Check a reward on rows with TRL's columns, and give back its scores for them.

    - Every setting is described (of a class), the defaults and ``settings`` are valid.
    - It gives one score for each answer: a finite number, or None for no opinion. It fails on none.
    - A score is the same when computed again, in another order, and without the answers to other prompts: in training,
      the answers that are scored together depend on the number of processes.
    - A score is the same in another process: ``hash()`` of text, and the order of a set, differ in each. (Of a reward
      in a module, which another process can import; of others ``hash()`` alone is watched.)
    - It changes nothing of what it is given.

    rows: ``prompt``, ``completion`` and the columns that it needs; rows with the same prompt are one group. tolerance:
    most that a score may move. It runs in this process, whatever its time limit.
    Raises AssertionError with what is wrong.
    """
    made = _made(reward, settings or {})
    answers = [_answer(row, rows) for row in rows]
    before = copy.deepcopy(answers)
    with tempfile.TemporaryDirectory() as cache:
        made.open(RewardContext(Path(cache)))
        try:
            first = _scores(made, answers)
            assert answers == before, f"{_name(reward)} changed what it was given"
            _same(reward, "computed again", first, _scores(made, answers), tolerance)
            _same(reward, "in reverse order", first, _scores(made, answers[::-1])[::-1], tolerance)
            for group in sorted({answer.group for answer in answers}):
                mine = [i for i, answer in enumerate(answers) if answer.group == group]
                alone = _scores(made, [answers[i] for i in mine])
                _same(reward, "without the other prompts", [first[i] for i in mine], alone, tolerance)
            with _salted_hash():
                _same(reward, _ELSEWHERE, first, _scores(made, answers), tolerance)
        finally:
            made.close()
    if (others := _scores_of_another_process(reward, rows, settings or {})) is not None:
        _same(reward, _ELSEWHERE, first, others, tolerance)
    return first


def score_here(
    module: str, name: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[float | None]:
    """Return the scores of the reward ``module.name`` for these rows, which ``check_reward`` asks of a child."""
    reward: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    made = _made(reward, settings)
    with tempfile.TemporaryDirectory() as cache:
        made.open(RewardContext(Path(cache)))
        try:
            answers = [_answer(row, rows) for row in rows]
            return [score.value for score in _scores(made, answers)]
        finally:
            made.close()


def _scores_of_another_process(
    reward: Plugin, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[Score] | None:
    """Return the scores that a new process with another hash seed gives, None where it cannot import the reward."""
    module, name = getattr(reward, "__module__", "__main__"), getattr(reward, "__qualname__", "<lambda>")
    if module == "__main__" or "<" in name:
        return None
    other_seed = "77" if os.environ.get("PYTHONHASHSEED") != "77" else "78"
    done = subprocess.run(
        child_processes.command("-c", _CHILD),
        input=pickle.dumps((module, name, [dict(row) for row in rows], dict(settings))),
        env=child_processes.environment() | {"PYTHONHASHSEED": other_seed},
        capture_output=True,
        timeout=_CHILD_SECONDS,
    )
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    assert done.returncode == 0, f"{_name(reward)} fails in another process: {last}"
    return [Score(value) for value in pickle.loads(done.stdout)]


@contextmanager
def _salted_hash() -> Iterator[None]:
    """Let ``hash()`` of all but numbers give what another process might."""
    plain = builtins.hash

    def salted(thing: Any) -> int:
        return plain(thing) if isinstance(thing, int | float) else plain(("another process", plain(thing)))

    builtins.hash = salted
    try:
        yield
    finally:
        builtins.hash = plain


def _made(reward: Plugin, settings: Mapping[str, Any]) -> Reward:
    config = config_of(reward)
    if not inspect.isclass(reward):
        bound = config(**settings)
        values = {name: getattr(bound, name) for name in type(bound).model_fields}
        return from_function(functools.partial(reward, **values), _name(reward))
    for name, field in config.model_fields.items():
        assert field.description, f"{_name(reward)}: setting {name!r} has no docstring"
    made: Any = reward
    return cast(Reward, made(config(**settings)))


def _answer(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Answer:
    completion = row["completion"]
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    group = next(i for i, other in enumerate(rows) if other["prompt"] == row["prompt"])
    columns = {name: value for name, value in row.items() if name not in ("prompt", "completion", "completion_ids")}
    return Answer(row["prompt"], completion, text, tuple(row.get("completion_ids", ())), "stop", columns, group)


def _scores(reward: Reward, answers: Sequence[Answer]) -> list[Score]:
    found = [
        s if isinstance(s, Score) else Score(s, "abstained" if s is None else "scored") for s in reward.score(answers)
    ]
    assert len(found) == len(answers), f"{len(found)} scores for {len(answers)} answers"
    for score, answer in zip(found, answers, strict=True):
        finite = score.value is None or math.isfinite(score.value)
        assert finite, f"the score of {answer.text[:40]!r} is {score.value}"
        failed = score.outcome == "error"
        assert not failed, f"it failed on {answer.text[:40]!r}: {score.why}; return None where it has no opinion"
    return found


def _same(reward: Plugin, how: str, want: Sequence[Score], got: Sequence[Score], tolerance: float) -> None:
    for one, other in zip(want, got, strict=True):
        known = one.value is not None and other.value is not None
        close = abs(one.value - other.value) <= tolerance if known else one.value == other.value  # type: ignore[operator]
        assert close, f"{_name(reward)}, {how}: a score of {one.value} becomes {other.value}"


def _name(reward: Plugin) -> str:
    return str(getattr(reward, "name", getattr(reward, "__name__", "the reward")))
