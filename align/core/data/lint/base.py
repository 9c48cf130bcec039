"""What a lint is: it sees every row once, and then says what it found, whatever the order was."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from align.core.data.lint.finding import LintFinding, Places
from align.core.data.lint.row_view import View

T = TypeVar("T")


class Lint:
    """One check, or several that need the same. Subclasses keep little for a row, and no text of all rows."""

    def see(self, row: View) -> None:
        """Take notice of one row."""
        raise NotImplementedError

    def findings(self, places: Places) -> Iterator[LintFinding]:
        """What it comes to, after the last row."""
        raise NotImplementedError


class Sample(Generic[T]):
    """At most ``most`` different things: those whose digests are smallest, so the same whatever the order.

    As digests are random, that is a random sample of what is different. After Bar-Yossef et al. (2002), bottom-k.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._heap: list[int] = []
        self._held: dict[int, T] = {}

    def offer(self, digest: int, make: Callable[[], T]) -> None:
        """Keep it, should it be among the smallest; ``make`` is called only then."""
        full = len(self._heap) >= self.most
        if digest in self._held or (full and digest >= -self._heap[0]):
            return
        self._held[digest] = make()
        if full:
            del self._held[-heapq.heapreplace(self._heap, -digest)]
        else:
            heapq.heappush(self._heap, -digest)

    def __iter__(self) -> Iterator[T]:
        return (self._held[digest] for digest in sorted(self._held))

    def __len__(self) -> int:
        return len(self._held)


@dataclass
class Thinned(Generic[T]):
    """A dict by digest that never holds more than ``most``: each time it is full, digests over half the limit go.

    What remains is every digest under ``limit``, of those that were entered in whatever order.
    """

    most: int
    limit: int = 2**64
    held: dict[int, T] = field(default_factory=dict)

    def wants(self, digest: int) -> bool:
        """Whether this digest is kept at all by now."""
        return digest < self.limit

    def set(self, digest: int, value: T) -> None:
        """Enter what is wanted."""
        self.held[digest] = value
        while len(self.held) > self.most:
            self.limit //= 2
            self.held = {key: value for key, value in self.held.items() if key < self.limit}

    @property
    def share(self) -> float:
        """Which part of all digests is kept, expected."""
        return self.limit / 2**64
