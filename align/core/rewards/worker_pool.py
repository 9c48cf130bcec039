"""Rewards with a time limit: one completion at a time, in processes that can be killed.

    trainer --spawns--> zygote (opens the reward, ``worker_process``) --forks--> warm workers

A newly spawned process has no CUDA context and no threads, so it can fork safely. Forking takes a millisecond,
importing a second. The trainer waits for each score until its deadline, then has the worker killed and another one
forked. So a reward that hangs, crashes or runs out of memory costs one completion its score and never ends the run.
The trainer's signal handlers are not used (no SIGALRM), since Lightning and the launcher own them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import queue
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from align.core.rewards.reward_base import Answer, Outcome, RewardContext, Score
from align.core.rewards.worker_process import LONGEST_REPLY
from align.core.util import child_processes
from align.schemas.errors import AlignError, Problem
from align.schemas.run import RewardChoice

_OPENING = 300.0
"""Seconds that a reward may take to open (imports included)."""
_FORKING = 5.0
"""Seconds after which a zygote that does not answer is replaced; it takes milliseconds."""
_SHORTEST = 1e-3
"""Seconds that are waited for a reply even past its deadline; 0 would mean not to wait at all."""


class _Down(Exception):
    """Raised if the zygote is gone or cannot fork."""


class _Broken(Exception):
    """Raised if a worker is gone, or its reply is invalid."""


@dataclass(eq=False)
class _Worker:
    """A worker as the trainer sees it. line: socket to its process; None where there is none, or it has ended."""

    line: socket.socket | None = None
    pid: int | None = None


class Workers:
    """A reward in processes that can be killed. ``score`` is as the reward's own, with a time limit per completion.

    choice   the reward; count: processes (default: this process's share of the CPUs, at most 8)
    seconds  limit for one completion; memory: bytes of address space for one worker
    place    given to the reward's ``open``

    Raises AlignError with the reason if the reward cannot be opened.
    """

    def __init__(
        self,
        choice: RewardChoice,
        seconds: float,
        *,
        count: int | None = None,
        memory: int = 4 * 2**30,
        place: RewardContext,
    ) -> None:
        self.choice, self.seconds, self.memory, self.place = choice, seconds, memory, place
        self._numbers = itertools.count(1)
        self._lock, self._closed = threading.Lock(), False  # the lock is for all that concerns the zygote
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._spawn()
        count = count or max(1, min(8, len(os.sched_getaffinity(0)) // place.world_size))
        self._workers = [_Worker() for _ in range(count)]
        self._idle = queue.SimpleQueue[_Worker]()
        for worker in self._workers:
            self._idle.put(worker)
        # One pool for all calls, a thread for each worker: an answer begins as soon as any worker is idle.
        self._pool = ThreadPoolExecutor(count, "align-workers")

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Return a score for each completion, in order; without value after a ``timeout`` or an ``error``."""
        return [score for score, _ in self.timed(answers)]

    def timed(self, answers: Sequence[Answer]) -> list[tuple[Score, float]]:
        """Return the scores as ``score`` does, each with the seconds that it took. Several threads may call it."""
        results = [self._pool.submit(self._timed, answer) for answer in answers]
        try:
            return [result.result() for result in results]
        finally:
            for result in results:  # interrupted
                result.cancel()

    def close(self) -> None:
        """Kill everything that was started; safe to call twice, and when nothing was scored."""
        self._closed = True
        with self._lock:
            self._hang_up_zygote()
        self._pool.shutdown(cancel_futures=True)  # soon: the workers are dead, and no other is forked
        for worker in self._workers:
            self._hang_up(worker)

    def _timed(self, answer: Answer) -> tuple[Score, float]:
        """Return an answer's score, and its seconds from when a worker was idle."""
        worker = self._idle.get()
        since = time.monotonic()
        try:
            return self._scored(worker, answer), time.monotonic() - since
        finally:
            self._idle.put(worker)

    def _scored(self, worker: _Worker, answer: Answer) -> Score:
        """Return a worker's score of an answer, or one that gives the reason why there is none."""
        number = next(self._numbers)
        try:
            if worker.line is None:
                self._fork(worker)
            assert worker.line is not None
            due = time.monotonic() + self.seconds
            body = pickle.dumps((number, answer))
            worker.line.settimeout(self.seconds)
            worker.line.sendall(len(body).to_bytes(8, "big") + body)
        except _Down as error:
            return Score(None, "error", why=f"no worker could be started: {error}")
        except TimeoutError:
            self._retire(worker)
            return self._late
        except OSError:
            return Score(None, "error", why=f"its worker process died ({self._retire(worker)})")
        except Exception as error:  # a completion that cannot be pickled
            self._retire(worker)
            return Score(None, "error", why=f"cannot be sent to a worker: {error}"[:500])
        try:
            score = self._reply(worker.line, number, due)
        except TimeoutError:
            self._retire(worker)
            return self._late
        except _Broken as error:
            how = self._retire(worker)
            return Score(None, "error", why=str(error) or f"its worker process died ({how})")
        if score.outcome == "error":  # the exception may have left its process in an undefined state
            self._retire(worker)
        return score

    @property
    def _late(self) -> Score:
        return Score(None, "timeout", why=f"took longer than {self.seconds:g} s")

    @staticmethod
    def _reply(line: socket.socket, number: int, due: float) -> Score:
        """Wait for a worker's reply, and return its score. Raises TimeoutError after ``due``, and _Broken.

        number: of the answer among all that were sent, so that a late reply is never taken for the next one's. due: on
        the monotonic clock. A reply is its length in 8 bytes and then JSON. The worker runs untrusted code, so the
        length is bounded before anything is kept, and JSON is read instead of a pickle.
        """
        received, size = b"", 0
        while len(received) < 8 + size:
            left = due - time.monotonic()
            if received and left <= 0:  # it sends byte by byte
                raise TimeoutError
            line.settimeout(max(_SHORTEST, left))  # a reply that is there counts, even if this process was stopped
            try:
                part = line.recv(2**16)
            except TimeoutError:
                raise
            except OSError:
                part = b""
            if not part:
                raise _Broken
            received += part
            size = int.from_bytes(received[:8], "big") if len(received) >= 8 else 0
            if size > LONGEST_REPLY or len(received) > 8 + LONGEST_REPLY:
                raise _Broken("its reply was too long")
        try:
            return _score_of(json.loads(received[8 : 8 + size]), number)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _Broken("its reply was no score") from error

    def _retire(self, worker: _Worker) -> str:
        """Kill a worker's process and fork the next. Return how it ended, such as ``SIGKILL`` or ``exit 3``."""
        self._hang_up(worker)
        with contextlib.suppress(_Down):  # forked again for the next completion
            return self._fork(worker)
        return "SIGKILL"

    @staticmethod
    def _hang_up(worker: _Worker) -> None:
        if worker.line is not None:
            worker.line.close()
            worker.line = None

    def _fork(self, worker: _Worker) -> str:
        """Have a worker's process replaced by a new one. Return how the old one ended. Raises _Down."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                reply = self._command({"kill": worker.pid}, theirs.fileno())
                worker.pid = reply["pid"]
            except (_Down, KeyError) as error:
                ours.close()
                worker.pid = None
                why = str(error) if isinstance(error, _Down) else reply.get("failed", "")
                raise _Down(why) from error
        worker.line = ours
        return str(reply.get("died", "SIGKILL"))

    def _command(self, command: dict[str, Any], fd: int) -> dict[str, Any]:
        """Send a command to the zygote and return its reply; a zygote that has gone is started again once.

        fd: the worker's end of a new socket, which the zygote hands to the process that it forks.
        """
        with self._lock:
            for _ in range(0 if self._closed else 2):
                try:
                    if self._control is None:
                        self._spawn()
                    assert self._control is not None
                    socket.send_fds(self._control, [json.dumps(command).encode()], [fd])
                    if reply := self._control.recv(2**17):
                        return dict(json.loads(reply))
                except OSError:
                    pass
                except AlignError as error:
                    raise _Down(str(error)) from error
                self._hang_up_zygote()
        raise _Down("the process that forks workers keeps dying")

    def _spawn(self) -> None:
        """Start the zygote and wait until the reward is open in it. Raises AlignError."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        spec = {
            "choice": self.choice.model_dump(mode="json"),
            "place": {key: str(v) if isinstance(v, Path) else v for key, v in asdict(self.place).items()},
            "memory": self.memory,
            "starter": os.getpid(),
        }
        # Errors go to a file: nobody would empty a pipe while the reward opens, and a full one would block it.
        with theirs, tempfile.TemporaryFile() as errors:
            self._zygote = subprocess.Popen(
                child_processes.command("-m", "align.core.rewards.worker_process", str(theirs.fileno())),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C reaches the trainer only, which ends the zygote itself
                env={"OMP_NUM_THREADS": "1", **child_processes.environment()},
            )
            theirs.close()
            assert self._zygote.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._zygote.stdin.write(json.dumps(spec).encode())
                self._zygote.stdin.close()
            self._control.settimeout(_OPENING)
            try:
                reply = self._control.recv(2**17)
                why = "" if reply else "its process ended"
            except TimeoutError:
                reply, why = b"", f"took longer than {_OPENING:g} s to open"
            if not reply:
                self._hang_up_zygote()
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                raise AlignError(": ".join([why, *last]), where=f"reward {self.choice.type}")
        self._control.settimeout(_FORKING)
        if problems := json.loads(reply).get("problems"):
            self._hang_up_zygote()
            here = f"reward {self.choice.type}"
            raise AlignError.gather(Problem(where or here, what, fix) for what, fix, where in problems)

    def _hang_up_zygote(self) -> None:
        """Close the zygote's socket, after which it kills its workers and ends; kill it if it does not within 1 s."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._zygote is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._zygote.wait(1.0)
            self._zygote.kill()
            self._zygote.wait()
            self._zygote = None


def _score_of(reply: dict[str, Any], number: int) -> Score:
    """Make a score of a reply. Raises ValueError, TypeError, KeyError or AttributeError if it is none."""
    if reply["number"] != number or reply["outcome"] not in get_args(Outcome):
        raise ValueError
    value = None if reply["value"] is None else float(reply["value"])
    parts = {str(name): float(part) for name, part in reply.get("parts", {}).items()}
    return Score(value, reply["outcome"], parts, str(reply["why"]))
