"""Signals that ask a run to stop, outside of its steps too. Imports no torch: works while torch is still imported.

Inside the training loop a signal only raises a flag and the step is finished (``callbacks.Signals``). Everywhere else
(imports, reading data, loading a model, an evaluation before the first step, ``best_of_n``, the export) the process
ends at once. An exception would not do: half an import cannot be undone, and code that guards a plugin's import would
take it for the plugin's failure. Nothing is lost, as files are whole or absent and every child dies with its parent.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from align.core.util.liveness import SIGNALS, give_up


class Interrupted(BaseException):
    """A stop by a signal, after saving. Not an Exception: no ``except Exception`` may take it for a failure.

    step: the last one that is saved, 0 before the first; None where that is not known.
    """

    def __init__(self, signal_number: int, step: int | None = None) -> None:
        self.signal_number, self.step = signal_number, step
        message = f"stopped by {signal.Signals(signal_number).name}"
        if step is not None:
            message += f" after step {step}, which is saved" if step else " before the first step"
        super().__init__(message)


@contextmanager
def ending_on_signals(again: str = "") -> Iterator[None]:
    """End the process on SIGTERM, SIGINT or SIGUSR1 while the block runs; its exit status is 128 plus the number.

    again: the command that continues the run, for the message; "" prints none, as for one process of several. Python
    lets only the main thread handle signals; in any other nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        message = f"{Interrupted(number)}; go on with: {again}" if again else ""
        give_up(message, 128 + number)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
