"""Rewards with a time limit: one answer at a time, in processes that can be killed.

    trainer --spawns--> zygote (opens the reward, ``worker_main``) --forks--> warm workers

A process spawned afresh holds no CUDA and no threads, so it may fork; forking costs a millisecond where importing costs
a second. The trainer waits for each answer until its deadline, then has the worker killed and another one forked. A
reward that hangs, crashes or eats memory so costs one answer its score, never the run. Signals of the trainer are not
touched: no SIGALRM, no handler.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import selectors
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from align.core.rewards.base import Answer, Outcome, RewardContext, Score
from align.core.rewards.worker_process import LONGEST_REPLY
from align.core.util import interpreter
from align.schemas.errors import AlignError, Problem
from align.schemas.run import RewardChoice

_OPENING = 300.0
"""Seconds that a reward may take to open (imports included)."""
_FORKING = 5.0
"""Seconds after which a zygote that does not answer is replaced; it takes milliseconds."""


class _Down(Exception):
    """The zygote is gone, or cannot fork."""


class _Broken(Exception):
    """A worker is gone, or says what is no reply."""


@dataclass(eq=False)
class _Worker:
    """A worker as the trainer sees it.

    since, due: seconds on the monotonic clock at which it was given an answer, and by which its score must be there.
    """

    line: socket.socket | None = None
    pid: int | None = None
    number: int = -1
    index: int = -1
    due: float = math.inf
    since: float = 0.0
    heard: bytes = b""


class Workers:
    """A reward in killable processes: ``score`` as the reward's own, and no answer costs more than ``seconds``.

    choice   the reward; count: processes (default: this process's share of the CPUs, at most 8)
    seconds  limit for one answer; memory: bytes of address space for one worker
    place    given to the reward's ``open``

    Raises AlignError with its reason where the reward cannot be opened.
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
        self._asked, self._lock = 0, threading.Lock()
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._spawn()
        share = max(1, min(8, len(os.sched_getaffinity(0)) // place.world_size))
        self._workers = [_Worker() for _ in range(count or share)]

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """A score for each answer, in their order; no value where the reward took too long (``timeout``) or failed."""
        return [score for score, _ in self.timed(answers)]

    def timed(self, answers: Sequence[Answer]) -> list[tuple[Score, float]]:
        """Return the scores as ``score`` does, each with the seconds that it took."""
        with self._lock:
            scores: dict[int, tuple[Score, float]] = {}
            waiting = deque(enumerate(answers))
            try:
                while len(scores) < len(answers):
                    for worker in self._workers:
                        if waiting and worker.due == math.inf:
                            index, answer = waiting.popleft()
                            scores |= self._give(worker, index, answer)
                    scores |= {index: (score, seconds) for index, score, seconds in self._hear()}
            finally:
                for worker in self._workers:
                    if worker.due < math.inf:  # interrupted: what it is about concerns nobody any more
                        self._retire(worker)
            return [scores[i] for i in range(len(answers))]

    def close(self) -> None:
        """Kill everything that was started; safe to call twice, and when nothing was scored."""
        with self._lock:
            for worker in self._workers:
                self._hang_up(worker)
            self._hang_up_zygote()

    def _give(self, worker: _Worker, index: int, answer: Answer) -> dict[int, tuple[Score, float]]:
        """Send an answer to an idle worker, freshly forked where there is none; its score where that fails."""
        since = time.monotonic()
        failed = self._sent(worker, index, answer, since)
        return {} if failed is None else {index: (failed, time.monotonic() - since)}

    def _sent(self, worker: _Worker, index: int, answer: Answer, since: float) -> Score | None:
        """Send an answer; return None, or the score that stands for the failure to do so."""
        try:
            if worker.line is None:
                self._fork(worker)
            assert worker.line is not None
            self._asked += 1
            worker.number, worker.index, worker.since = self._asked, index, since
            worker.due = time.monotonic() + self.seconds
            body = pickle.dumps((self._asked, answer))
            worker.line.settimeout(self.seconds)
            worker.line.sendall(len(body).to_bytes(8, "big") + body)
            worker.line.settimeout(0)
            return None
        except _Down as error:
            return Score(None, "error", why=f"no worker could be started: {error}")
        except TimeoutError:
            self._retire(worker)
            return self._late
        except OSError:
            return Score(None, "error", why=f"its worker process died ({self._retire(worker)})")
        except Exception as error:  # an answer that cannot be sent
            self._retire(worker)
            return Score(None, "error", why=f"cannot be sent to a worker: {error}"[:500])

    def _hear(self) -> Iterator[tuple[int, Score, float]]:
        """Wait until a worker replies or the first deadline passes; yield answers' index, score and seconds."""
        busy = [worker for worker in self._workers if worker.due < math.inf]
        if not busy:
            return
        with selectors.DefaultSelector() as select:
            for worker in busy:
                assert worker.line is not None
                select.register(worker.line, selectors.EVENT_READ, worker)
            ready = select.select(max(0.0, min(worker.due for worker in busy) - time.monotonic()))
        for worker in (key.data for key, _ in ready):
            try:
                score = self._read(worker)
            except _Broken as error:
                how = self._retire(worker)
                score = Score(None, "error", why=str(error) or f"its worker process died ({how})")
                yield worker.index, score, time.monotonic() - worker.since
                continue
            if score is not None:
                worker.due = math.inf
                if score.outcome == "error":  # whatever it left half done goes with it
                    self._retire(worker)
                yield worker.index, score, time.monotonic() - worker.since
        now = time.monotonic()
        for worker in busy:
            if worker.due <= now and worker.line is not None:
                self._retire(worker)
                yield worker.index, self._late, now - worker.since

    @property
    def _late(self) -> Score:
        return Score(None, "timeout", why=f"took longer than {self.seconds:g} s")

    def _read(self, worker: _Worker) -> Score | None:
        """What has come of a worker's reply; its score once that is whole. Raises _Broken."""
        assert worker.line is not None
        try:
            part = worker.line.recv(2**16)
        except BlockingIOError:
            return None
        except OSError:
            part = b""
        if not part:
            raise _Broken
        worker.heard += part
        size = int.from_bytes(worker.heard[:8], "big")
        if (len(worker.heard) >= 8 and size > LONGEST_REPLY) or len(worker.heard) > 8 + LONGEST_REPLY:
            raise _Broken("its reply was too long")
        if len(worker.heard) < 8 + size:
            return None
        body, worker.heard = worker.heard[8 : 8 + size], b""
        try:
            return _score_of(json.loads(body), worker.number)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _Broken("its reply was no score") from error

    def _retire(self, worker: _Worker) -> str:
        """Kill it and fork the next; how it ended."""
        self._hang_up(worker)
        with contextlib.suppress(_Down):  # tried again for the next answer
            return self._fork(worker)
        return "SIGKILL"

    @staticmethod
    def _hang_up(worker: _Worker) -> None:
        worker.due, worker.heard = math.inf, b""
        if worker.line is not None:
            worker.line.close()
            worker.line = None

    def _fork(self, worker: _Worker) -> str:
        """A new process for it, in its old one's place; how that one ended. Raises _Down."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                said = self._command({"kill": worker.pid}, theirs.fileno())
                worker.pid = said["pid"]
            except (_Down, KeyError) as error:
                ours.close()
                worker.pid = None
                raise _Down(str(error) if isinstance(error, _Down) else said.get("failed", "")) from error
        worker.line = ours
        return str(said.get("died", "SIGKILL"))

    def _command(self, command: dict[str, Any], fd: int) -> dict[str, Any]:
        """One command to the zygote, which is started again where it has gone."""
        for _ in range(2):
            try:
                if self._control is None:
                    self._spawn()
                assert self._control is not None
                socket.send_fds(self._control, [json.dumps(command).encode()], [fd])
                if reply := self._control.recv(2**17):
                    said: dict[str, Any] = json.loads(reply)
                    return said
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
        with theirs, tempfile.TemporaryFile() as said:
            self._zygote = subprocess.Popen(
                interpreter.command("-m", "align.core.rewards.worker_process", str(theirs.fileno())),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", **interpreter.environment()},
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
                said.seek(0)
                last = said.read().decode(errors="replace").strip().splitlines()[-1:]
                raise AlignError(": ".join([why, *last]), where=f"reward {self.choice.type}")
        self._control.settimeout(_FORKING)
        if problems := json.loads(reply).get("problems"):
            self._hang_up_zygote()
            here = f"reward {self.choice.type}"
            raise AlignError.gather(Problem(where or here, what, fix) for what, fix, where in problems)

    def _hang_up_zygote(self) -> None:
        """It kills its workers and goes; it is killed where it does not, and then they die with it."""
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
    """A reply as a score. Raises ValueError, TypeError, KeyError or AttributeError where it is none."""
    if reply["number"] != number or reply["outcome"] not in get_args(Outcome):
        raise ValueError
    value = None if reply["value"] is None else float(reply["value"])
    parts = {str(name): float(part) for name, part in reply.get("parts", {}).items()}
    return Score(value, reply["outcome"], parts, str(reply["why"]))
