"""A judge's verdicts and what they have cost, on disk: SQLite files that all ranks share and no kill damages.

They use SQLite's write-ahead log, which needs a directory on one machine's own disk. SQLite notices no flipped bit in a
row, so each row carries a checksum.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, ClassVar

from align import AlignError
from align.files import digest


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests, and tokens read and written by the judge."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Cap:
    """Limits on a run's spending; None is no limit. Prices are of a million tokens, in one currency of the user's."""

    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __str__(self) -> str:
        limits = {"requests": self.requests, "tokens": self.tokens, "in money": self.cost}
        return "the cap of " + ", ".join(f"{limit:g} {what}" for what, limit in limits.items() if limit is not None)

    def price(self, usage: Usage) -> float:
        """Return the cost, in the currency of the prices."""
        return (usage.prompt_tokens * self.prompt_price + usage.completion_tokens * self.completion_price) / 1e6

    def holds(self, usage: Usage) -> bool:
        """Return whether that much may be spent."""
        tokens = usage.prompt_tokens + usage.completion_tokens
        return (
            (self.requests is None or usage.requests <= self.requests)
            and (self.tokens is None or tokens <= self.tokens)
            and (self.cost is None or self.price(usage) <= self.cost)
        )


class _File:
    """An SQLite file with one table, for any number of threads and processes."""

    table: ClassVar[str]
    """The table's name."""
    columns: ClassVar[Mapping[str, str]]
    """The type of each column, by name."""
    remedy: ClassVar[str]
    """The fix for a file that is damaged, or written by another version of align."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the file; None keeps it in memory.

        Raises AlignError where it is damaged, cannot be written, or has another version's columns.
        """
        self._lock, self._path = threading.Lock(), path
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns.items())
        with self._exclusive():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            name = ":memory:" if path is None else str(path)
            self._database = sqlite3.connect(name, timeout=60, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(f"CREATE TABLE IF NOT EXISTS {self.table} ({columns}) WITHOUT ROWID")
            found = [str(row[1]) for row in self._database.execute(f"PRAGMA table_info({self.table})")]
        if found != list(self.columns):
            self.close()
            what = f"was written by another version of align: its table {self.table} has the columns {', '.join(found)}"
            raise AlignError(what, self.remedy, where=str(self._path))

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let one thread in at a time; raise the database's errors as AlignErrors."""
        try:
            with self._lock:
                yield
        except (sqlite3.Error, OSError) as error:
            fix = "see that its disk is well and has room, or remove the file: what it kept is then gone"
            raise AlignError(f"cannot be used: {error}", fix, where=str(self._path)) from error


class VerdictStore(_File):
    """Verdicts by key (``JudgeTask.digest``): what was judged once is not judged, or paid for, again."""

    table = "verdicts"
    columns: ClassVar[Mapping[str, str]] = {"key": "TEXT PRIMARY KEY", "verdict": "TEXT NOT NULL"}
    remedy = "remove the file: the judge is asked for its verdicts again"

    def get(self, key: str) -> str | None:
        """Return the verdict, or None. A damaged one is removed, so that it is judged again."""
        with self._exclusive():
            found = self._database.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
            if found is None:
                return None
            verdict = str(found[0]).partition(" ")[2]
            if found[0] == _with_sum(key, verdict):
                return verdict
            # By its content too: another process may have put a good one there since.
            self._database.execute("DELETE FROM verdicts WHERE key = ? AND verdict = ?", (key, found[0]))
        return None

    def put(self, key: str, verdict: str) -> str:
        """Keep a verdict, and return the one that is valid: the first, where another process was there before."""
        with self._exclusive():
            row = (key, _with_sum(key, verdict))
            self._database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", row)
        return self.get(key) or verdict


def _with_sum(key: str, verdict: str) -> str:
    return f"{digest([key, verdict])} {verdict}"


class Ledger(_File):
    """The account of what one judge has cost a run, and the cap on it.

    The most that a request can cost is reserved before it is sent, and corrected when its reply is there. So the cap
    holds over all threads, ranks and resumed starts; a process that is killed in between has spent its reservations.
    """

    table = "spent"
    columns: ClassVar[Mapping[str, str]] = {
        "owner": "TEXT PRIMARY KEY",
        "requests": "INTEGER",
        "prompt_tokens": "INTEGER",
        "completion_tokens": "INTEGER",
        "sum": "TEXT",
    }
    remedy = "lower the caps by what was spent so far, as your provider reports, and remove the file"

    def __init__(self, path: Path | None, owner: str, cap: Cap) -> None:
        super().__init__(path)
        self.cap, self._owner = cap, owner
        with self._exclusive():
            self._database.execute("INSERT OR IGNORE INTO spent VALUES (?, ?, ?, ?, ?)", self._row(owner, Usage()))
            for row in self._database.execute("SELECT * FROM spent"):
                self._verified(row)  # every owner's: with a damaged name, this judge's row would not be found by name

    @property
    def spent(self) -> Usage:
        """The sum of all reservations and corrections so far."""
        with self._exclusive():
            return self._spent()

    def reserve(self, most: Usage) -> bool:
        """Reserve the most that a request can cost; return False, reserving nothing, where the cap would be broken."""
        with self._exclusive(), self._transaction():
            spent = self._spent()
            holds = self.cap.holds(spent + most)
            if holds:
                self._keep(spent + most)
        return holds

    def settle(self, most: Usage, used: Usage) -> None:
        """Correct a reservation to what was used."""
        with self._exclusive(), self._transaction():
            self._keep(self._spent() + (used - most))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold a transaction in which no other process writes."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            self._database.execute("COMMIT")

    def _spent(self) -> Usage:
        return self._verified(self._database.execute("SELECT * FROM spent WHERE owner = ?", (self._owner,)).fetchone())

    def _keep(self, spent: Usage) -> None:
        self._database.execute("INSERT OR REPLACE INTO spent VALUES (?, ?, ?, ?, ?)", self._row(self._owner, spent))

    def _verified(self, row: Any) -> Usage:
        """Return the usage in a row. Raises AlignError where its checksum is another.

        Unlike a verdict it cannot be had again, and to start from 0 would break the cap.
        """
        with suppress(TypeError):
            owner, *numbers, _ = row
            if tuple(row) == self._row(owner, Usage(*numbers)):
                return Usage(*numbers)
        raise AlignError("is damaged: what it says was spent differs from its sum", self.remedy, where=str(self._path))

    @staticmethod
    def _row(owner: str, spent: Usage) -> tuple[Any, ...]:
        return (owner, *astuple(spent), digest([owner, *astuple(spent)]))
