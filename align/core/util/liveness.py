"""Threads that watch this process and others: no wait without a limit, and messages that name who waits. No torch.

A process that hangs cannot report it, so threads of its own watch it:

* work that may never return (a reward, a lock) is entered with ``waiting``: reported after a while, given up after
  ``Limits.silence`` seconds;
* every process of a group writes a sign of life each second to ``STAGE/.ranks/RANK.json``
  (``align.core.util.signs_of_life``), and watches those of others: a stopped or vanished process cannot report itself,
  and its peers only see a collective that never ends;
* who loses another writes ``STAGE/.ranks/alarm.json``, which all read each second: every process then writes the stacks
  of its threads to ``STAGE/logs/RANK.stack``, names the lost one in its log, and ends;
* a signal starts a clock: a process that has not stopped after ``Limits.stop`` seconds ends all the same
  (``align.core.util.stopping``).

The medium is the run directory, which all hosts of a run share already: nothing else has to be reachable, and clocks
are not compared, since a sign counts up. Each process watches the next ``WATCHED`` ranks, so that many hosts do not
read each other's files all the time.

Giving up means ``os._exit``: the main thread may be inside a call that nothing interrupts. Nothing is lost by it:
files are written atomically, the last checkpoint is valid, and every child dies with its parent.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, NoReturn

from align.core.util import atomic_files, event_log, profile
from align.core.util.signs_of_life import (
    BEAT,
    RANKS,
    Alarm,
    Sign,
    group,
    named,
    process_state,
    raise_alarm,
    read_alarm,
    read_sign,
    request_stacks,
    stacks_of,
)
from align.core.util.stopping import (
    FAILED,
    LOST,
    SIGNALS,
    Interrupted,
    ProcessLost,
    end,
    give_up,
    say,
    signal_deadline,
)
from align.core.util.stragglers import Pace, Straggler, straggler
from align.schemas.errors import Problem
from align.schemas.text import stripped

WATCHED = 8
"""Ranks that a process watches: those after it, in a ring."""
PATIENCE = 60.0
"""Seconds of waiting after which it is reported; again whenever the time has doubled."""
STARVED = 30.0
"""Seconds that the watching thread does not get to run after which the stacks are written: C code holds the GIL."""
STALLED = 10.0
"""A step that takes so many times the longest before it, and more than ``PATIENCE``, is reported with all stacks."""
ALL_SIGNS = 10.0
"""Seconds between two looks of rank 0 at the signs of all ranks."""
GRACE = 30.0
"""Seconds for a process to end by itself when another has reported why it ends."""
LOG_INTERVAL = 10.0
"""Seconds between two steps in the log of a process."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds to wait. silence: for work, or another process, that may never end; stop: after a signal.

    heartbeat: for a sign of life of another process, while steps are taken. Without limits (a command that only scores,
    where Ctrl-C ends it at once) waits are reported.
    """

    silence: float = float("inf")
    stop: float = float("inf")
    heartbeat: float = float("inf")


def this_process() -> str:
    """Return this process as messages name it: rank, host, step and what it does."""
    sign = _watch.sign()
    return named(_watch.rank, replace(sign, doing=sign.doing or sign.part))


@dataclass(eq=False)
class _Wait:
    what: str
    fix: str
    since: float
    reported: float = PATIENCE


@dataclass(eq=False)
class _Peer:
    """Another process as this one sees it. silent: seconds that it was watched without a new sign."""

    sign: Sign | None = None
    silent: float = 0.0
    report: float | None = None
    failing: float = 0.0
    left: bool = False


class _Watch:
    """The state and the threads that watch this process; one for all waits, started by the first."""

    def __init__(self) -> None:
        self.limits, self.rank, self.world = Limits(), 0, 1
        self.directory: Path | None = None
        self.step: int | None = None
        self.total: int | None = None
        self.steady = False
        self.error = ""
        self.waits: list[_Wait] = []
        self.log: event_log.EventLog | None = None
        self.pace = Pace()
        self.group = ""
        self.ending = False
        self._threads: list[threading.Thread] = []
        self._pid = 0
        self._wake, self._news = threading.Event(), threading.Event()
        self._beat = 0
        self._publishing = threading.Lock()
        self._stacks: IO[str] | None = None
        self.begin()

    def begin(self) -> None:
        """Forget what was seen of others: another group, or stage, begins."""
        self._peers: defaultdict[int, _Peer] = defaultdict(_Peer)
        self._found: dict[int, Sign] = {}
        self._alarm: Alarm | None = None
        self._rounds = self._round = 0  # of the thread that reads and writes, and the last one that was noticed
        self._hung, self._hung_report = 0.0, PATIENCE  # seconds for which it has not come back
        self._looks = 0  # completed readings of the signs
        self._judged = 0
        self._requested: float | None = None  # when stacks were last asked for
        self._logged, self._stall = 0.0, PATIENCE
        self._straggler, self._times, self._compared = "", 0, 0  # the last one, how often in a row, up to which step

    def start(self) -> None:
        """Start the threads, in a forked child too, or have them look at once."""
        if not self._threads or self._pid != os.getpid():
            self._pid, self._wake, self._news = os.getpid(), threading.Event(), threading.Event()
            loops = {"align-liveness": self._run, "align-signs": self._exchange}
            self._threads = [threading.Thread(target=loop, name=name, daemon=True) for name, loop in loops.items()]
            for thread in self._threads:
                thread.start()
        self._wake.set()
        self._news.set()

    # --- the thread that decides: it touches no file before it has to ------------------------------------------------

    def _run(self) -> None:
        before, passed = time.monotonic(), 0.0
        while True:
            # Only time in which this thread ran counts: after SIGSTOP, or a laptop's sleep, all signs are old.
            now = time.monotonic()
            lately, before = min(now - before, 2 * BEAT), now
            passed = min(passed + lately, 5 * BEAT)
            self._look_at_waits()
            self._look_at_disk(lately)
            if self._alarm is not None and self._alarm.group == self.group:
                self._end_by(self._alarm)
            if self._looks != self._judged:  # what could not be read anew says nothing about the others
                self._judged = self._looks
                self._look_at_peers(passed)
                self._look_at_progress()
                passed = 0.0
            if self._stacks is not None:
                with suppress(ValueError):  # it was closed in between
                    faulthandler.dump_traceback_later(STARVED, file=self._stacks)
            time.sleep(BEAT / 4)
            # Outside a run there is nothing to look at until somebody waits.
            self._wake.wait(BEAT if self.waits or self.directory is not None else None)
            self._wake.clear()

    def _look_at_waits(self) -> None:
        for wait in list(self.waits):
            waited = time.monotonic() - wait.since
            who = named(self.rank, replace(self.sign(), doing=""))
            if waited > self.limits.silence:
                fix = "; ".join([wait.fix, "--resume goes on from the last checkpoint"]).removeprefix("; ")
                self.give_up(Problem(who, f"{wait.what}: no end after {waited:.0f} s; given up", fix))
            if waited > wait.reported:
                wait.reported = 2 * waited
                limit = self.limits.silence
                self.report(
                    f"{who}: {wait.what}, {waited:.0f} s so far" + f"; given up after {limit:g} s" * (limit < 1e9)
                )

    def _look_at_disk(self, lately: float) -> None:
        """Report a disk that does not answer, and end by it; without a word to it, which would hang this thread too."""
        self._hung = 0.0 if self._rounds != self._round or self.directory is None else self._hung + lately
        self._round = self._rounds
        if not self._hung:
            self._hung_report = PATIENCE
            return
        what = f"its disk has not answered for {self._hung:.0f} s"
        if self._hung > self.limits.silence:
            fix = "see to the disk (a network disk hangs where its server is gone), then use --resume"
            give_up(str(Problem(str(self.directory), f"{what}; given up", fix)), FAILED)
        if self._hung > self._hung_report:
            self._hung_report = 2 * self._hung
            say(f"{self.directory}: {what}; given up after {self.limits.silence:g} s")

    def _watched(self) -> list[int]:
        return [(self.rank + 1 + i) % self.world for i in range(min(self.world - 1, WATCHED))]

    def _look_at_peers(self, passed: float) -> None:
        """Judge the processes that this one watches by their signs. passed: seconds since the last look."""
        for rank in self._watched():
            peer, sign = self._peers[rank], self._found.get(rank)
            if sign is None and peer.sign is not None:
                peer.left = True  # it has left the stage in good order, and removed its sign
            if sign is not None and (peer.sign is None or sign.beat != peer.sign.beat):
                self._peers[rank] = _Peer(sign, failing=peer.failing)
                continue
            if peer.left:
                continue
            peer.silent += passed
            if sign is not None and sign.error:
                # It has said why it ends, and this process usually ends by the connection that breaks with it.
                peer.failing += passed
                if peer.failing > GRACE:
                    self._end_by(Alarm(rank, sign.host, sign.error, self.group))
                continue
            self._judge(rank, peer)

    def _judge(self, rank: int, peer: _Peer) -> None:
        limit, state = self._limit(peer)
        what = "has given no sign of life" if peer.sign else "has not started"
        if peer.silent > limit:
            setting = "heartbeat" if limit < self.limits.silence else "timeout"
            self.give_up(
                Problem(
                    named(rank, peer.sign),
                    f"{what} for {peer.silent:.0f} s{state}; rank {self.rank} on {socket.gethostname()} "
                    "gives up waiting for it",
                    "it was stopped (SIGSTOP), or its machine hangs or is gone; see to that, then use --resume. "
                    f"devices.{setting} is how long to wait",
                )
            )
        if peer.silent > (peer.report or min(PATIENCE, limit / 2)):
            peer.report = 2 * peer.silent
            self.report(
                f"{named(rank, peer.sign)}: {what} for {peer.silent:.0f} s{state}; given up after {limit:g} s",
                aloud=self._first_watcher(rank),
            )

    def _limit(self, peer: _Peer) -> tuple[float, str]:
        """Return how long a process may be silent, and what else is known of it, for the message.

        The thread that gives signs needs the GIL for a moment. C code that holds it for long (a file of many GB that is
        mapped and read from a slow disk) starves it; that happens while models are loaded and written, so ``heartbeat``
        is for the time of steps. On this machine the kernel knows: who is stopped or gone is lost, who runs is not.
        """
        short = min(self.limits.heartbeat, self.limits.silence)
        sign = peer.sign
        if sign is None:
            return self.limits.silence, ""
        if sign.host == socket.gethostname():
            state = process_state(sign.pid)
            if state in ("T", "t"):
                return short, " (it is stopped)"
            if not state:
                return short, " (its process is gone)"
            return self.limits.silence, " (its process runs: a call in C that holds the GIL)"
        return (short if sign.steady else self.limits.silence), ""

    def _first_watcher(self, rank: int) -> bool:
        """Return True if this process is the one that reports on another: one line is enough."""
        return self.rank == (rank - 1) % self.world

    def _look_at_progress(self) -> None:
        """Report a step that does not end, and the rank that the others wait for. Rank 0 does it for all."""
        if self.rank or not self.steady:
            return
        waited = time.monotonic() - self.pace.last
        if not self.pace.longest or waited < PATIENCE:
            self._stall = PATIENCE
        elif waited > max(self._stall, STALLED * self.pace.longest):
            self._stall = 2 * waited
            self.report(f"{self._where()}; {self._stacks_written(ask=True)}", event="stall", seconds=round(waited, 1))
        found_now = dict(self._found)  # the other thread changes it
        self._look_at_link(found_now)
        windows = {rank: window for rank, sign in found_now.items() if (window := sign.averages()) is not None}
        found: Straggler | None = straggler(windows) if len(windows) == self.world else None
        last = max((window.last_step for window in windows.values()), default=0)
        if len(windows) < self.world or last == self._compared:
            return
        self._compared = last
        known = "" if found is None else f"{found.rank} {found.why[0]}"
        # Once may be chance, as where a neighbour on the machine was busy; twice in a row is said, and only once.
        self._times = self._times + 1 if known == self._straggler else 1
        self._straggler = known
        if found is not None and self._times == 2:
            sign = found_now[found.rank]
            self.report(f"rank {found.rank} on {sign.host} {found}", event="straggler", slow=found.rank)

    def _look_at_link(self, found: Mapping[int, Sign]) -> None:
        """End the group where all ranks wait for each other: what each waits for has been sent, and does not arrive."""
        waits = [sign.part_seconds for sign in found.values() if sign.part == profile.WAITING and not sign.error]
        if self.world == 1 or len(waits) < self.world or min(waits) <= self.limits.heartbeat:
            return
        hosts = sorted({sign.host for sign in found.values()})
        self.give_up(
            Problem(
                f"all ranks, on {', '.join(hosts[:4])}{f' and {len(hosts) - 4} more' if len(hosts) > 4 else ''}",
                f"wait for each other since {min(waits):.0f} s at step {self.step}: the network between them is cut or "
                "too slow",
                "look at the network that GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names, then use --resume. "
                "devices.heartbeat is how long to wait",
            )
        )

    def _where(self) -> str:
        """Return a sentence about a step that does not end: which ranks do what."""
        waited, before = time.monotonic() - self.pace.last, self.pace.longest
        busy = [
            f"{named(rank, sign)} is in {sign.part or 'no part'}"
            for rank, sign in sorted(dict(self._found).items())
            if sign.part != profile.WAITING
        ]
        if not busy:
            what = "all ranks wait for each other: the link between them may be cut"
        else:
            more = f" and {len(busy) - 4} more" if len(busy) > 4 else ""
            rest = ", the others wait" if len(busy) < self.world else ""
            what = "; ".join(busy[:4]) + more + rest
        return f"no step has ended for {waited:.0f} s, and the longest before took {before:.1f} s: {what}"

    # --- the thread that reads and writes: a disk that hangs stops this one only -------------------------------------

    def _exchange(self) -> None:
        every = 0.0
        while True:
            if self.directory is not None:
                # A full disk is reported by the code that needs it. The others' signs are old then for the same reason.
                with suppress(OSError, AttributeError):  # the directory may be left in between
                    self.publish()
                    all_of_them = self.rank == 0 and time.monotonic() - every > ALL_SIGNS
                    every = time.monotonic() if all_of_them else every
                    self._read(self.directory / RANKS, all_of_them)
                self._rounds += 1
            time.sleep(BEAT / 4)  # a wake-up for every step of a small model would be too much writing
            self._news.wait(BEAT if self.directory is not None else None)
            self._news.clear()

    def _read(self, place: Path, all_of_them: bool) -> None:
        """Read the signs of the watched ranks, the alarm, and whether stacks are wanted."""
        for rank in range(self.world) if all_of_them else self._watched():
            sign = read_sign(place / f"{rank}.json")
            if sign is not None and sign.group == self.group:
                self._found[rank] = sign
            elif sign is not None or not (place / f"{rank}.json").exists():
                self._found.pop(rank, None)
        self._alarm = read_alarm(place)
        try:
            wanted = (place / "stacks").stat().st_mtime
        except OSError:
            wanted = 0.0
        if self._requested is not None and wanted != self._requested:
            self.dump_stacks("asked for")
        self._requested = wanted
        self._looks += 1

    def sign(self) -> Sign:
        """Return this process's sign of life."""
        doing = self.waits[-1].what if self.waits else ""
        measured = profile.active()
        part, since = ("", 0.0) if measured is None else measured.current
        window = None if self.pace.window is None else asdict(self.pace.window)
        return Sign(
            host=socket.gethostname(),
            pid=os.getpid(),
            step=self.step,
            doing=doing,
            beat=self._beat,
            error=self.error,
            total=self.total,
            part=part,
            part_seconds=round(since, 1),
            steady=self.steady,
            window=window,
            group=self.group,
        )

    def publish(self) -> None:
        """Write the sign of life, for the other processes and for ``align status``."""
        # Not forever: the thread that holds it may be stuck in a write, and a process that gives up must not wait.
        if not self._publishing.acquire(timeout=5.0):
            return
        try:
            if self.directory is None:
                return
            self._beat += 1
            place = self.directory / RANKS / f"{self.rank}.json"
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = atomic_files.partial(place)
            temporary.write_text(json.dumps(asdict(self.sign())), encoding="utf-8")
            temporary.replace(place)
        finally:
            self._publishing.release()

    def leave(self, keep: bool) -> None:
        """Publish the last sign of life. keep: leave it to be read; else the process ended in good order."""
        with suppress(OSError):
            if keep:
                self.publish()
        with self._publishing:
            here, self.directory = self.directory, None
            if here is not None and not keep:
                with suppress(OSError):
                    (here / RANKS / f"{self.rank}.json").unlink(missing_ok=True)
                    (here / RANKS).rmdir()  # the last one; else it is not empty

    # --- stacks, reports, the end --------------------------------------------------------------------------------

    def open_stacks(self) -> None:
        """Open the file for stacks now: C writes to it when Python cannot run."""
        self.close_stacks()
        if self.directory is not None:
            with suppress(OSError):
                file = stacks_of(self.directory, self.rank)
                file.parent.mkdir(parents=True, exist_ok=True)
                self._stacks = open(file, "a", encoding="utf-8")  # noqa: SIM115 - closed by close_stacks

    def close_stacks(self) -> None:
        """Close the file, and remove it where nothing was written."""
        if self._stacks is None:
            return
        faulthandler.cancel_dump_traceback_later()
        file, self._stacks = self._stacks, None
        file.close()
        with suppress(OSError):
            if not os.path.getsize(file.name):
                os.unlink(file.name)

    def dump_stacks(self, why: str) -> None:
        """Write the stack of every thread of this process."""
        if self._stacks is None:
            return
        with suppress(OSError, ValueError):
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            self._stacks.write(f"\n{now} {named(self.rank, self.sign())}: {why}\n")
            self._stacks.flush()
            faulthandler.dump_traceback(self._stacks, all_threads=True)

    def _stacks_written(self, ask: bool = False) -> str:
        """Return where stacks are, for messages. ask: have every process write its own."""
        if self.directory is None:
            return ""
        if ask:
            with suppress(OSError):
                request_stacks(self.directory)
        every = stacks_of(self.directory, self.rank).with_name("rank-*.stack")
        return f"stacks of all ranks: {every}" if self.world > 1 else f"stacks: {stacks_of(self.directory, 0)}"

    def note(self, event: str, **fields: Any) -> None:
        """Write an event to the log of this process, if it has one."""
        if self.log is not None:
            self.log.write(event, **{"step": self.step, **fields})

    def report(self, message: str, *, event: str = "wait", aloud: bool = True, **fields: Any) -> None:
        """Write a message to the log and, aloud, to stderr."""
        self.note(event, what=stripped(message), **fields)
        if aloud:
            say(message)

    def give_up(self, problem: Problem) -> None:
        """Report why and end this process, even if its main thread hangs; the others of its group end by the alarm."""
        alarm = Alarm(self.rank, socket.gethostname(), str(problem), self.group)
        if self.world > 1 and self.directory is not None:
            with suppress(OSError):
                alarm = raise_alarm(self.directory / RANKS, alarm)
        self._end_by(alarm)

    def _end_by(self, alarm: Alarm) -> None:
        """Write stacks, name the cause, and end. Of each machine one process says it on stderr."""
        if self.ending:  # the main thread is about to end by itself
            return
        self.ending = True
        mine = alarm.rank == self.rank
        self.note("alarm", by=alarm.rank, what=alarm.problem)
        self.dump_stacks(alarm.problem)
        if mine:
            self.error = alarm.problem
        with suppress(OSError):
            self.publish()
        if self.world > 1 and self.directory is not None:
            time.sleep(2 * BEAT)  # the others write their stacks; a process that ends breaks their connections
        elsewhere = alarm.host != socket.gethostname()
        if mine or (elsewhere and os.environ.get("LOCAL_RANK", "0") == "0"):
            message = alarm.problem
            if self._stacks is not None:
                message += f"\n    {self._stacks_written()}"
            say(message)
        if not mine:
            time.sleep(BEAT)  # the one that knows the cause ends first
        self.note("end", status=FAILED if mine else LOST)
        end(FAILED if mine else LOST)


_watch = _Watch()


def _forget_in_child() -> None:
    """Reset a forked child: it is not in the group, and its signals must not enter the pipe shared with its parent."""
    _watch.__init__()  # type: ignore[misc]
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
    _release_signals()


_forking = threading.local()


def _hold_signals() -> None:
    """Block signals while this thread forks: one that a child gets before it is reset would enter the shared pipe."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_forget_in_child)


@contextmanager
def watched(directory: Path | None, rank: int, world: int, limits: Limits) -> Iterator[None]:
    """Watch this process, one of a group of ``world``, until the end of the block; signals have a deadline in it."""
    before = (_watch.directory, _watch.rank, _watch.world, _watch.limits, _watch.log)
    _watch.begin()
    _watch.rank, _watch.world, _watch.limits, _watch.group = rank, world, limits, group() if world > 1 else ""
    _watch.step, _watch.total, _watch.steady, _watch.error, _watch.pace = None, None, False, "", Pace()
    _watch.directory = directory
    if directory is not None:
        _watch.log = event_log.EventLog(event_log.place(directory, rank), rank, socket.gethostname())
        _watch.open_stacks()
        _watch.note("start", pid=os.getpid(), world=world, group=_watch.group or None)
    _watch.start()
    status, keep = "failed", True
    try:
        with signal_deadline(limits.stop, note, _late):
            yield
        status, keep = "done", False
    except Interrupted as stop:
        status, keep = str(stop), False
        raise
    except BaseException as error:
        what = stripped(str(error) or type(error).__name__)
        _watch.note("error", kind=type(error).__name__, what=what)
        if not isinstance(error, ProcessLost):
            _watch.error = what  # published: other processes only see a closed connection
        raise
    finally:
        _watch.steady = False
        if _watch.ending:  # the thread that ends this process still reports why
            time.sleep(GRACE)
        _watch.note("end", status=status)
        _watch.close_stacks()
        _watch.leave(keep)
        log, (_watch.directory, _watch.rank, _watch.world, _watch.limits, _watch.log) = _watch.log, before
        if log is not None and log is not _watch.log:
            log.close()


@contextmanager
def waiting(what: str, fix: str = "") -> Iterator[None]:
    """Run a block that may never end: it is reported, and after ``Limits.silence`` seconds it ends the process."""
    wait = _Wait(what, fix, time.monotonic())
    _watch.waits.append(wait)
    _watch.start()
    try:
        yield
    finally:
        _watch.waits.remove(wait)


def at_step(step: int, total: int) -> None:
    """Note the optimizer step that is being made, from 1 to ``total``; from now on this process takes steps."""
    _watch.step, _watch.total, _watch.steady = min(step, total), total, True
    _watch._news.set()


def step_done(step: int, tokens: int, **metrics: float) -> None:
    """Note that an optimizer step is done. tokens: those that this process has learned from; metrics: for the log.

    The log has the first step and the last, and in between one every ``LOG_INTERVAL`` seconds.
    """
    before = _watch.pace.last
    _watch.pace.step_done(step, tokens)
    now = time.monotonic()
    if now - _watch._logged >= LOG_INTERVAL or step == _watch.total:
        _watch._logged = now
        window = None if _watch.pace.window is None else asdict(_watch.pace.window)
        _watch.note("step", step=step, total=_watch.total, seconds=round(now - before, 4), window=window, **metrics)


def steps_end() -> None:
    """Note that this process takes no more steps: signs may come late while it writes the model."""
    _watch.steady = False


def note(event: str, **fields: Any) -> None:
    """Write an event to the log of this process, in a run's stage; elsewhere nothing."""
    _watch.note(event, **fields)


def _late(number: int, seconds: float) -> NoReturn:
    """End this process, whose step has not ended in time after a signal."""
    _watch.dump_stacks("the step did not end after a signal")
    _watch.note("end", status=128 + number)
    if _watch.rank == 0 or _watch.waits:  # the other ranks only wait for these
        who, name = named(_watch.rank, _watch.sign()), signal.Signals(number).name
        say(
            f"{who}: {name} came {seconds:g} s ago and the step has not ended; ending now. "
            "--resume goes on from the last checkpoint (devices.stop_timeout is how long to wait)"
        )
    end(128 + number)
