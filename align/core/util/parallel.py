"""Map a function over items in worker processes: in order, in bounded memory, without leaving orphan processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from align.core.util.child_processes import safe_spawning
from align.core.util.liveness import waiting
from align.schemas.errors import AlignError

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")

_state: Any = None
"""The state that a worker process was started with."""


def ordered_map(
    work: Callable[[State, Item], Result], state: State, items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Yield ``work(state, item)`` for each item, in order; with 0 workers everything runs in this process.

    ``state`` is sent to each process once. Processes are spawned, never forked: this one may hold threads, a GPU, a
    process group. Raises AlignError where one dies, as it does without memory.
    """
    if workers == 0:
        yield from (work(state, item) for item in items)
        return
    context = multiprocessing.get_context("spawn")
    futures: deque[Future[Result]] = deque()
    with safe_spawning():  # the pool starts multiprocessing's own helper process
        pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(state,))
    with pool:
        try:
            for item in items:
                with safe_spawning():  # submitting may start a worker process
                    futures.append(pool.submit(_work, work, item))
                if len(futures) > 2 * workers:
                    yield _result(futures.popleft())
            while futures:
                yield _result(futures.popleft())
        except BrokenProcessPool:
            raise AlignError(
                "a worker process died: out of memory, or killed",
                "set data.dataset_num_proc: 1, which names the row if it is one row's fault; in a Python script of "
                "your own, start align under `if __name__ == '__main__':`",
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[Result]) -> Result:
    with waiting("a worker process that reads rows", "set data.dataset_num_proc: 1, which shows where it stands"):
        return future.result()


def _begin(state: Any) -> None:
    """Prepare a worker process: leave Ctrl-C to the parent, and exit when the parent does."""
    global _state
    _state = state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a thread pool in each of N processes would only get in the way
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(work: Callable[[Any, Item], Result], item: Item) -> Result:
    return work(_state, item)
