"""The processes of ``worker_pool``: a zygote opens the reward once and forks a worker at each command.

    python -m align.core.rewards.worker_process CONTROL_FD      (started by ``worker_pool`` only)

Neither the zygote nor its workers outlive the process that started it: the zygote watches that process through a pidfd,
and the workers get SIGKILL when the zygote dies (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import resource
import select
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import Reward, RewardContext, Score, from_function
from align.core.util import stopping
from align.core.util.error_line import error_line
from align.schemas.errors import AlignError
from align.schemas.run import RewardChoice

LONGEST_REPLY = 2**20
"""Largest number of bytes in a worker's reply; a longer one is an error."""
_LONGEST_WHY = 500
_INSIDE = "ALIGN_INSIDE_REWARD_WORKER"
"""Environment variable of a worker and of all that it starts: they are killed with it, so they start no workers."""


def main() -> None:
    """Open the reward that stdin names and report if it opens; then serve until the starter hangs up or dies."""
    control = socket.socket(fileno=int(sys.argv[1]))
    spec = json.load(sys.stdin)
    starter = os.pidfd_open(spec["starter"])
    stopping.adopt_orphans()
    try:
        reward = _opened(spec)
    except AlignError as error:
        control.send(json.dumps({"problems": [[p.what, p.fix, p.where] for p in error.problems]}).encode()[:100_000])
        return
    except Exception as error:
        control.send(json.dumps({"problems": [[f"failed to open: {error_line(error)}", "", ""]]}).encode())
        return
    gc.freeze()  # a collection would write to every object's header and so copy the pages that workers share
    control.send(b"{}")
    try:
        _Zygote(control, starter, reward, spec["memory"]).serve()
    finally:
        reward.close()


def _opened(spec: dict[str, Any]) -> Reward:
    if _INSIDE in os.environ:
        raise AlignError(
            "has a time limit of its own, and is asked by a reward that has one too",
            "leave timeout out of the reward that asks",
        )
    os.environ[_INSIDE] = "1"
    choice = RewardChoice.model_validate(spec["choice"])
    made = registry.build("reward", choice)
    if not isinstance(made, Reward):
        made = from_function(made, choice.type)
    place = spec["place"]
    made.open(RewardContext(**place | {name: place[name] and Path(place[name]) for name in ("cache", "home")}))
    return made


@dataclass
class _Zygote:
    """The process that forks workers. It never runs the reward after ``open``, so it replies at once."""

    control: socket.socket
    starter: int
    reward: Reward
    memory: int

    def serve(self) -> None:
        """Handle commands ``{"kill": pid or null}``, each sent with the socket of the worker to fork (SCM_RIGHTS)."""
        workers: set[int] = set()
        watch = select.poll()
        watch.register(self.control, select.POLLIN)
        watch.register(self.starter, select.POLLIN)
        while True:
            ready = {fd for fd, _ in watch.poll()}
            if self.starter in ready:
                break
            message, fds, _, _ = socket.recv_fds(self.control, 4096, 1)
            if not message:
                break
            command = json.loads(message)
            reply: dict[str, Any] = {}
            if command["kill"] in workers:
                workers.discard(command["kill"])
                reply["died"] = _ended(command["kill"])
            _reap(workers)
            try:
                reply["pid"] = self._fork(fds[0])
                workers.add(reply["pid"])
            except OSError as error:
                reply["failed"] = str(error)
            os.close(fds[0])
            with contextlib.suppress(OSError):
                self.control.send(json.dumps(reply).encode())
        for pid in workers:
            _ended(pid)
        _reap(set())

    def _fork(self, fd: int) -> int:
        zygote, pid = os.getpid(), os.fork()
        if pid:
            # Set by both sides, so that the group exists before either goes on; the second call may fail.
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            return pid
        try:
            stopping.die_with_parent()
            if os.getppid() == zygote:  # else the zygote died before the line above
                os.setpgid(0, 0)
                os.close(self.starter)
                self.control.close()
                resource.setrlimit(resource.RLIMIT_AS, (self.memory, self.memory))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.dup2(1, 2)  # stdout is /dev/null already, and stdin has been read to its end
                _work(socket.socket(fileno=fd), self.reward, self.memory)
        finally:
            os._exit(0)


def _work(line: socket.socket, reward: Reward, memory: int) -> None:
    """Score one completion after the other until the socket is closed."""
    me = os.getpid()
    while header := line.recv(8, socket.MSG_WAITALL):
        size = int.from_bytes(header, "big")
        body = line.recv(size, socket.MSG_WAITALL)
        if len(body) < size:
            return
        number, answer = pickle.loads(body)  # from the trainer, which is trusted; replies go back as JSON
        try:
            reply = _plain(reward.score([answer]))
        except MemoryError:
            reply = {"value": None, "outcome": "error", "why": f"needed more than {memory / 2**30:.3g} GiB of memory"}
        except BaseException as error:  # also SystemExit and KeyboardInterrupt of the reward
            reply = {"value": None, "outcome": "error", "why": error_line(error)}
        if os.getpid() != me:  # the reward forked, and this is the child
            return
        encoded = json.dumps({"number": number, **reply}).encode()
        if len(encoded) > LONGEST_REPLY:
            why = f"its score takes {len(encoded)} bytes; at most {LONGEST_REPLY} are read"
            encoded = json.dumps({"number": number, "value": None, "outcome": "error", "why": why}).encode()
        line.sendall(len(encoded).to_bytes(8, "big") + encoded)


def _plain(scores: Any) -> dict[str, Any]:
    """Return a reward's one score as values of JSON. Raises ValueError or TypeError if it is none."""
    if len(scores) != 1:
        raise ValueError(f"gave {len(scores)} scores for 1 answer")
    score = scores[0]
    if score is None:
        score = Score(None, "abstained")
    elif not isinstance(score, Score):
        score = Score(float(score))
    plain = asdict(score)
    plain["value"] = None if score.value is None else float(score.value)
    plain["parts"] = {str(name): float(value) for name, value in score.parts.items()}
    plain["why"] = score.why[:_LONGEST_WHY]
    return plain


def _ended(pid: int, patience: float = 0.05) -> str:
    """Kill a worker with its process group, and return how it ended: ``SIGSEGV``, ``exit 3``.

    patience: seconds to wait for its end. One that takes longer is reaped later and counts as ``SIGKILL``.
    """
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)
    until = time.monotonic() + patience
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit {code}"
        if time.monotonic() > until:
            return "SIGKILL"
        time.sleep(0.0005)


def _reap(workers: set[int]) -> None:
    """Kill every child that is no worker (processes that workers left behind), and reap the dead ones."""
    with contextlib.suppress(OSError):
        for pid in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()):
            if pid not in workers:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)


if __name__ == "__main__":
    main()
