"""The far end of ``align launch --hosts``: run one command on this host, and end it when the launcher is gone.

``python -m align.core.launching.agent``. The first line of stdin is the order, as JSON (``argv``, ``directory``,
``environment``, ``stop_seconds``), each further one the name of a signal to pass on. So nothing is quoted for two
shells, and no value shows in ``ps``. When stdin ends, the launcher or the network is gone: ssh without a terminal would
leave the command running for ever, and a second start of the run would find it there. No torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from align.core.util.stopping import adopt_orphans

READY = "align-agent ready"
"""The agent's first line on stdout: the launcher knows by it that the host answered, and that align is there."""


def main() -> int:
    """Run the order's command; return its exit status, that of a shell where a signal ended it."""
    if "quiet" not in sys.argv[1:]:
        print(READY, flush=True)
    order = json.loads(sys.stdin.readline() or "null")
    if order is None:
        return 1
    try:
        os.chdir(order["directory"])
        command = subprocess.Popen(
            order["argv"],
            env=os.environ | order["environment"],
            stdin=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C goes to a whole group, and would come twice
        )
    except OSError as error:
        print(f"{error.strerror}: {error.filename}", file=sys.stderr, flush=True)
        return 127
    threading.Thread(target=_obey, args=(command, order["stop_seconds"]), daemon=True).start()
    status = command.wait()
    _kill_orphans()
    return status if status >= 0 else 128 - status


def _obey(command: subprocess.Popen[bytes], stop_seconds: float) -> None:
    """Pass on the signals that stdin names; once it is over, end the command, and kill it where that takes long."""
    for line in sys.stdin:
        with suppress(ProcessLookupError, KeyError):
            command.send_signal(signal.Signals[line.strip()])
    with suppress(ProcessLookupError):
        command.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        command.wait(stop_seconds)
        return
    command.kill()


def _kill_orphans() -> None:
    """Kill what the command left behind: its children have sessions of their own, and come to this process by then."""
    children = Path("/proc/self/task") / str(os.getpid()) / "children"
    while left := children.read_text().split():
        for process in map(int, left):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(process, 0)


if __name__ == "__main__":
    adopt_orphans()
    # A launcher that is gone reads no output either: writing must not end the agent before it has ended the command.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # By a handler, since the command would inherit SIG_IGN: a torchrun that waits for other nodes could not be ended.
    for outlived in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(outlived, lambda *_: None)
    sys.exit(main())
