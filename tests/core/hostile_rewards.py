"""A plugin with one reward that does, in its worker, whatever the answer's text says."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from align.core.rewards.reward_base import Answer, Reward, RewardContext, Score
from align.hookspecs import Register, hookimpl
from align.schemas.base import Config
from align.schemas.errors import AlignError


def ignore_and_sleep() -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)


def spin() -> None:
    while True:
        pass


def leave_children() -> None:
    for own_session in (False, True):
        if os.fork() == 0:
            if own_session:
                os.setsid()
            time.sleep(60)
            os._exit(0)


def close_everything() -> None:
    os.closerange(3, 100)


def write_everywhere() -> None:
    for fd in range(3, 20):
        try:
            os.write(fd, b"\x00" * 7 + b"\x02{}" * 3)
        except OSError:
            continue


DEEDS: dict[str, Callable[[], object]] = {
    "spin": spin,
    "c loop": lambda: 9**9**9,
    "sleep": lambda: time.sleep(60),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "ignore": ignore_and_sleep,
    "exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "memory": lambda: len(bytearray(100 * 2**30)),
    "raise": lambda: 1 / 0,
    "recursion": lambda: (lambda f: f(f))(lambda f: f(f)),
    "print": lambda: print("SCRIBBLE" * 100_000, flush=True),
    "stderr": lambda: os.write(2, b"SCRIBBLE" * 100),
    "fork": os.fork,
    "children": leave_children,
    "close": close_everything,
    "write": write_everywhere,
}


class Hostile(Reward):
    """``deed`` in ``DEEDS``, or a number to be given back."""

    name = "hostile"
    seconds = 0.5

    class Config(Config):
        """Whether opening it fails."""

        refuses: bool = False
        """Raise when opened."""
        dies: bool = False
        """Exit when opened."""

    config: Config

    def open(self, place: RewardContext) -> None:
        Path(place.cache, "opened").write_text(str(os.getpid()))
        if self.config.refuses:
            raise AlignError("lacks a licence", "buy one")
        if self.config.dies:
            os.write(2, b"no luck\n")
            os._exit(1)

    def score(self, answers: Sequence[Answer]) -> Sequence[Score | float | None]:
        (answer,) = answers
        if answer.text in DEEDS:
            DEEDS[answer.text]()
            return [Score(-1.0, why=f"pid {os.getpid()}")]
        if answer.text == "long":
            return [Score(0.0, parts={str(i): 0.0 for i in range(100_000)})]
        if answer.text == "two":
            return [1.0, 2.0]
        if answer.text == "none":
            return [None]
        return [Score(float(answer.text), "right", {"size": float(len(str(answer.prompt)))}, f"pid {os.getpid()}")]


def bare(completions: list[str], factor: list[float], **columns: object) -> list[float]:
    """A bare function in TRL's signature."""
    return [len(completion) * by for completion, by in zip(completions, factor, strict=True)]


@hookimpl
def register_rewards(register: Register) -> None:
    register("hostile", f"{__name__}:Hostile")
    register("bare", f"{__name__}:bare")
