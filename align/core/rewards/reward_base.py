"""The interface of rewards: completions in, a score or none for each out. A bare function can be one.

No torch: worker processes import this.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import math
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from align.core.util.atomic_files import cache_directory
from align.core.util.child_processes import importing_from
from align.core.util.error_line import error_line
from align.schemas.base import Config
from align.schemas.errors import AlignError
from align.schemas.records import Content

Outcome = Literal["scored", "right", "wrong", "unparsed", "abstained", "timeout", "error"]
"""scored    a number that is neither right nor wrong (a length, a judge's mark)
right, wrong  a verdict
unparsed  the completion holds nothing to judge; the reward decides if that scores 0 or abstains
abstained the reward has no opinion
timeout, error  the reward failed on this completion, which gets no score. A completion whose own code runs too long is
                wrong instead"""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion to be scored.

    completion: in the form of the row's prompt, a string or ``[{"role": "assistant", "content": ...}]``. text: the
    completion as a string, without special tokens. tokens: its ids; empty if they are not known. finish: ``length``
    if it was cut off. columns: the row's other keys (``solution``, ...). group: the same number for all completions
    of a prompt.
    """

    prompt: Content
    completion: Content
    text: str
    tokens: tuple[int, ...] = ()
    finish: Literal["stop", "length"] = "stop"
    columns: Mapping[str, Any] = field(default_factory=dict)
    group: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """The result of a reward for one answer.

    value: the score; None abstains, which is not the same as 0. parts: its components by name. why: a sentence, if
    there is no score or it needs an explanation.
    """

    value: float | None
    outcome: Outcome = "scored"
    parts: Mapping[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class RewardContext:
    """The surroundings of a reward, given to ``Reward.open``.

    cache: directory for data that it keeps between runs. rank, world_size: its process among those that score. seed: of
    the run. accelerator: for rewards that are models. home: directory for data of this run alone (money spent), None
    without a run.
    """

    cache: Path = field(default_factory=lambda: cache_directory() / "rewards")
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    accelerator: Literal["cpu", "cuda"] = "cpu"
    home: Path | None = None


class Reward:
    """Base class of rewards: subclass, set ``name``, write ``score``. A bare function is a reward too.

    A score may depend on its completion and on the others of the same group, but not on other groups in the call.
    """

    name: ClassVar[str]
    """The name in a run file."""
    required_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that every row must have; checked before training."""
    seconds: ClassVar[float | None] = None
    """Time limit for one completion. If set, the reward is called with one completion at a time in a worker process,
    which is killed if it takes longer, crashes or needs too much memory; that completion then gets no score."""

    limits: ClassVar[frozenset[str]] = frozenset()
    """Settings that bound its work and affect no score: a run may be resumed with other values."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings that name a file or a model: a resumed run compares the content there, not the path."""

    class Config(Config):
        """Settings in the run file."""

    @property
    def compares(self) -> bool:
        """True if a score depends on the group's other completions, so that they must be scored in one call."""
        return False

    @property
    def overlaps(self) -> bool:
        """True if it may score finished groups while others are still generated; read after ``open``.

        It is then called in threads of its own, with several calls under way at once, each with groups that have
        finished, in any order. So a score must be the same to the bit whatever else is in the call, and ``score`` may
        be called from any number of threads, and may use nothing that only the main thread has (signals), nor global
        random numbers. A limit on requests at a time must hold over all calls. For rewards that wait for others: a
        server, a process. Default: False, one call in the main thread with everything that this process sampled; the
        setting ``overlap: true`` then has it called in a thread, never twice at a time.
        """
        return False

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def label(self) -> str:
        """A text for messages that tells it from others of its name, such as a function's file; "" for none."""
        return ""

    def open(self, place: RewardContext) -> None:
        """Get ready. Raises AlignError if it cannot work here."""

    def unfit(self, columns: Mapping[str, Any]) -> str | None:
        """Return why no completion of this row can be scored, or None; called for each row before training."""
        lacking = [name for name in self.required_columns if columns.get(name) is None]
        return f"has no {' and no '.join(map(repr, lacking))}" if lacking else None

    def score(self, answers: Sequence[Answer]) -> Sequence[Score | float | None]:
        """Return one score for each completion, in their order; None abstains, a number is a score without verdict."""
        raise NotImplementedError

    def counts(self) -> Mapping[str, float]:
        """Return figures about its work and its cost so far, by name; for summaries."""
        return {}

    def close(self) -> None:
        """Release all resources; safe to call twice."""


# --- units of length, for rewards about length and repetition --------------------------------------------------------

Unit = Literal["tokens", "words", "characters"]
"""Units of a completion's length: see ``pieces``."""


def pieces(answer: Answer, unit: Unit) -> Sequence[int | str] | None:
    """Return the answer as tokens, words (split at whitespace) or characters; None where its tokens are not known."""
    if unit == "tokens":
        return None if answer.text and not answer.tokens else answer.tokens
    return answer.text.split() if unit == "words" else answer.text


NO_TOKENS = "its tokens are not known: give completion_ids, or set unit to words or characters"
"""The reason of a score that is missing because a completion came without token ids."""


# --- regular expressions in the settings of rewards ------------------------------------------------------------------


def compiles(pattern: str) -> str:
    """Return the pattern. Raises ValueError if it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(compiles)]
"""A setting that holds a regular expression; one that does not compile is refused when the run file is read."""


# --- functions -------------------------------------------------------------------------------------------------------

# A bare function as a reward, in the signature of TRL: ``f(prompts, completions, completion_ids, **columns)``.
#
# It is called with keywords, only those that it takes (all, where it takes ``**kwargs``): ``prompts``, ``completions``
# (strings, or lists of messages where the prompt is one), ``completion_ids``, every column of the rows as a list, and
# TRL's helpers ``trainer_state``, ``log_extra`` and ``log_metric``. It gives a number for each answer, or None where
# it has no opinion; an ``async def`` does so too.

_LONGEST = 200
"""Characters that are kept of a value which a function logs about one completion."""


@dataclass
class TrainerState:
    """The trainer's state as reward functions see it. global_step: optimizer steps done; 0 outside training."""

    global_step: int = 0


STATE = TrainerState()
"""The state of this process, given to functions that take ``trainer_state``. In worker processes it stays at 0."""


def set_global_step(step: int) -> None:
    """Set the optimizer step that functions see as ``trainer_state.global_step``; 0 outside training."""
    STATE.global_step = step


_GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


class FunctionReward(Reward):
    """A function that is called as TRL calls it. Its settings are bound already (``functools.partial``)."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        """Read the function's signature. Raises AlignError if an argument cannot be given by keyword."""
        super().__init__(self.Config())
        self._function, self._label = function, name
        parameters = inspect.signature(function).parameters.values()
        bound = function.keywords if isinstance(function, functools.partial) else {}
        if nameless := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]:
            raise AlignError(f"its argument {nameless[0]!r} cannot be given by name", where=f"reward {name}")
        self._open = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._bound = frozenset(bound)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in bound]
        self._takes = frozenset(p.name for p in named)
        self.required_columns = tuple(  # type: ignore[misc]  # of this function; a class of rewards has one for all
            p.name for p in named if p.default is p.empty and p.name not in _GIVEN
        )
        self._loop: _EventLoop | None = None
        self._starting = threading.Lock()
        self._logged: dict[str, float] = {}

    @property
    def overlaps(self) -> bool:
        """True for an ``async def``: it waits for a server, and its calls share one event loop."""
        return inspect.iscoroutinefunction(self._function)

    def unfit(self, columns: Mapping[str, Any]) -> str | None:
        """Return the columns that a row lacks, as a message. An empty value will do: the function may abstain."""
        lacking = [name for name in self.required_columns if name not in columns]
        return f"has no {' and no '.join(map(repr, lacking))}" if lacking else None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Call the function and check its scores. Raises AlignError unless each is a number or None."""
        if not answers:
            return []
        extra: dict[str, list[Any]] = {}
        result = self._function(**self._arguments(answers, extra))
        if inspect.isawaitable(result):
            result = self._wait(result)
        values = _listed(result)
        if values is None or len(values) != len(answers):
            gave = f"a {type(result).__name__}" if values is None else f"{len(values)} scores"
            fix = "return a list with a number, or None, for each completion"
            raise AlignError(f"gave {gave} for {len(answers)} answers", fix, where=f"reward {self._label}")
        return [self._checked(value, i, extra) for i, value in enumerate(values)]

    def _arguments(self, answers: Sequence[Answer], extra: dict[str, list[Any]]) -> dict[str, Any]:
        columns = list(dict.fromkeys(name for answer in answers for name in answer.columns))
        if lacking := [name for name in self.required_columns if name not in columns]:
            known = f"the rows' columns: {', '.join(columns)}" if columns else "the rows have no columns"
            raise AlignError(f"takes {lacking[0]!r}, which no row has", known, where=f"reward {self._label}")
        given: dict[str, Any] = {name: [answer.columns.get(name) for answer in answers] for name in columns}
        given |= {
            "prompts": [answer.prompt for answer in answers],
            "completions": [answer.completion for answer in answers],
            "completion_ids": [list(answer.tokens) for answer in answers],
            "trainer_state": STATE,
            "log_extra": extra.__setitem__,
            "log_metric": self._log,
        }
        return {
            name: value
            for name, value in given.items()
            if name not in self._bound and (self._open or name in self._takes)
        }

    def _log(self, name: str, value: float) -> None:
        self._logged[str(name)] = float(value)

    def _wait(self, awaitable: Awaitable[Any]) -> Any:
        """Return the result of an awaitable.

        All run on one event loop, since HTTP clients stay bound to the loop that they were first used on.
        """
        with self._starting:
            if self._loop is None:
                self._loop = _EventLoop(f"align-{self._label}")
        return self._loop.wait(awaitable)

    def _checked(self, value: Any, i: int, extra: Mapping[str, Sequence[Any]]) -> Score:
        logged = {name: values[i] for name, values in extra.items() if len(values) > i}
        parts = components(logged)
        why = describe(logged, parts)
        if value is None:
            return Score(None, "abstained", parts, why)
        try:
            if isinstance(value, str | bytes):  # float("1") is 1.0, but text is more likely a mistake
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            shown = f"{value!r:.60} ({type(value).__name__})"
            raise AlignError(
                f"gave {shown} for an answer", "return numbers or None", where=f"reward {self._label}"
            ) from None
        if not math.isfinite(number):
            return Score(None, "error", parts, f"its score was {number}")
        return Score(number, "scored", parts, why)

    def counts(self) -> Mapping[str, float]:
        """Return the metrics that the function logged last, with ``log_metric``."""
        return self._logged

    def close(self) -> None:
        """End its event loop."""
        with self._starting:
            if self._loop is not None:
                self._loop.close()
                self._loop = None


class _EventLoop:
    """An event loop in a thread of its own, for any number of threads: a calling one may run a loop already."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._over = False
        # A daemon: whoever forgets to close a reward must still be able to end the process.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wait(self, awaitable: Awaitable[Any]) -> Any:
        """Return an awaitable's result, while others may be under way. Raises what it raises."""
        return asyncio.run_coroutine_threadsafe(_awaited(awaitable), self._loop).result()

    def close(self) -> None:
        """Cancel what is under way, and end the thread."""
        self._over = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # its end cancels tasks and closes generators
            loop = runner.get_loop()
            while not self._over:
                # A task's sys.exit leaves the loop, though the task has it as its error and the others are to go on.
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    loop.run_forever()


def from_function(function: Callable[..., Any], name: str) -> Reward:
    """Return a function in TRL's signature as a reward called ``name``."""
    return FunctionReward(function, name)


def load_function(file: str, function: str) -> Callable[..., Any]:
    """Return a function of a Python file. The file is run once a process, and may import its neighbours meanwhile.

    A neighbour never replaces a module of the standard library, as ``random.py`` would.

    Raises AlignError where it cannot be run or does not hold the function.
    """
    path = Path(file).expanduser().resolve()
    name = f"align_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise AlignError("is no Python file", "give the path of a .py file", where=file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            with importing_from(path.parent):
                spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise AlignError(f"fails to load: {error_line(error)}", "fix it", where=file) from error
    found = getattr(module, function, None)
    if not callable(found):
        own = [name for name, thing in vars(module).items() if inspect.isfunction(thing) and name[0] != "_"]
        raise AlignError(f"has no function {function!r}", f"it has: {', '.join(own) or 'none'}", where=file)
    return found  # type: ignore[no-any-return]


def components(logged: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among the values that a function logs with a score: JSON has no others."""
    numbers = {str(name): value for name, value in logged.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if abs(value) <= sys.float_info.max}


def describe(logged: Mapping[str, Any], parts: Mapping[str, float]) -> str:
    """Return the logged values that are not in ``parts`` as text, ``name: value`` each."""
    return "; ".join(f"{name}: {value}"[:_LONGEST] for name, value in logged.items() if str(name) not in parts)


async def _awaited(awaitable: Any) -> Any:
    # An event loop is given coroutines only, and a function may return any awaitable.
    return await awaitable


def _listed(scores: Any) -> list[Any] | None:
    """Return scores as a list, those in a tensor or an array too; None if they are no sequence."""
    if hasattr(scores, "tolist"):
        scores = scores.tolist()
    return list(scores) if isinstance(scores, list | tuple) else None
