"""A signal that asks a run to stop, outside of its steps too. No torch: it holds while torch is still being imported.

Inside the training loop a signal only raises a flag and the step is finished (``callbacks.Signals``). Everywhere else
(imports, reading data, loading a model, an evaluation before the first step, ``best_of_n``, the export) the process
ends where it stands. An exception would not do: half an import cannot be undone, and whoever guards an import would
take it for the plugin's failure. Nothing is lost, as files are whole or absent and every child dies with its parent.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from align.core.liveness import SIGNALS, give_up


class Interrupted(BaseException):
    """Stopped by a signal, after saving. Not an Exception, so that nothing takes it for a failure.

    step: the last that is saved, 0 before the first; None where that is not known.
    """

    def __init__(self, signal_number: int, step: int | None = None) -> None:
        self.signal_number, self.step = signal_number, step
        where = f"after step {step}, which is saved" if step else "before the first step"
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}" if step is None else f"stopped by {name} {where}")


@contextmanager
def ending_on_signals(again: str = "") -> Iterator[None]:
    """End the process in the block on SIGTERM, SIGINT or SIGUSR1, with 128 plus its number.

    again: the command that goes on, for the message; "" says nothing, as for one process of several. Only a main thread
    may handle signals; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        give_up(f"{Interrupted(number)}; go on with: {again}" if again else "", 128 + number)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
