"""Child Python processes that import the same modules as this one, and nothing that merely lies in the directory.

``python -m`` and ``python -c`` look for every module in the working directory first, so a user's ``random.py`` there is
executed in place of Python's. A child is therefore started with ``-P``, and is given this process's path without the
entry that Python itself put first. ``ordered_map`` shares work out over such processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import site
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from align.core.util.error_line import HOME
from align.core.util.liveness import waiting
from align.schemas.errors import AlignError


def command(*arguments: str) -> list[str]:
    """Return the command line that runs this interpreter with ``arguments``; start it with ``environment()``."""
    return [sys.executable, "-P", *arguments]


def environment() -> dict[str, str]:
    """Return this process's environment, with a PYTHONPATH from which a child imports the same modules."""
    path = os.pathsep.join(import_path())
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return without | ({"PYTHONPATH": path} if path else {})


def import_path() -> list[str]:
    """Return the entries of ``sys.path`` that a child started with ``-P`` lacks, in their order.

    Left out are the directory of the script or the working directory, unless PYTHONPATH names it or align itself lives
    there; and whatever lies in the interpreter's own directories, which the child searches anyway. PYTHONPATH would put
    it before them: ``setuptools/_vendor``, which setuptools appends, holds old copies of other packages.
    """
    named = {_resolved(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    own = {_resolved(entry) for entry in _own_directories()}
    implicit = {_resolved(entry) for entry in _implicit_directories()} - {HOME}

    def lacks(entry: str) -> bool:
        place = _resolved(entry)
        return place in named or not (place in implicit or own & {place, *place.parents})

    return [entry for entry in sys.path if lacks(entry)]


@contextmanager
def safe_spawning() -> Iterator[None]:
    """Have ``multiprocessing`` start children as with ``-P``, for which it has no option but the environment."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


_imported: dict[Path, set[str]] = {}
"""Names of the modules that ``importing_from`` has loaded of each directory."""


@contextmanager
def importing_from(directory: Path) -> Iterator[None]:
    """Find modules in ``directory`` first while the block runs, but never in place of the standard library's.

    Modules that an earlier call loaded of another directory are forgotten: two directories may each have a
    ``helpers.py``, and Python would give the second user the first one's.
    """
    for other, names in _imported.items():
        if other != directory:
            for name in names:
                sys.modules.pop(name, None)
    before = set(sys.modules)
    sys.path.insert(0, str(directory))
    sys.meta_path.insert(0, _StandardLibrary)
    try:
        yield
    finally:
        sys.meta_path.remove(_StandardLibrary)
        sys.path.remove(str(directory))
        loaded = (name for name in sys.modules.keys() - before if _lies_in(sys.modules[name], directory))
        _imported.setdefault(directory, set()).update(loaded)


def _lies_in(module: ModuleType, directory: Path) -> bool:
    """Return True if the module's file, or a folder of its package, is below the directory."""
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(Path(place).resolve().is_relative_to(directory) for place in places if place)


class _StandardLibrary(MetaPathFinder):
    """A finder of Python's own modules in their own directories, wherever those stand on the path."""

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of a top-level module of the standard library, None for any other."""
        if path is not None or name not in sys.stdlib_module_names:
            return None
        return PathFinder.find_spec(name, _standard_directories())


def _standard_directories() -> list[str]:
    bundled = (f"python{sys.version_info.major}{sys.version_info.minor}.zip", "lib-dynload")
    found = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    return [*found, *(entry for entry in sys.path if entry.endswith(bundled))]


def _own_directories() -> list[str]:
    """Return the directories that every process of this interpreter searches: standard library and site-packages."""
    return [*_standard_directories(), *site.getsitepackages(), site.getusersitepackages()]


def _implicit_directories() -> list[str]:
    """Return what Python itself puts first on the path: the working directory, or that of the script."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return ["", *([os.path.dirname(os.path.abspath(script))] if script else [])]


def _resolved(entry: str) -> Path:
    return Path(entry or os.curdir).resolve()


# Map a function over items in worker processes: in order, in bounded memory, without leaving orphan processes.

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
