"""A vLLM server as a child: on this machine only, with a key of its own, ended with us whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align import AlignError
from align.http import Client, Failed
from align.plugins.generators.vllm.arguments import VLLMConfig
from align.plugins.generators.vllm.supervisor import GRACE
from align.processes import free_port

_PREFIX = re.compile(r"^(\(\w+ pid=\d+\)\s?)?(ERROR [\d-]+ [\d:]+ \[[^]]*\] ?)?")
EXTENSION = "align.plugins.generators.vllm.extension"
BY_HAND = f"""VLLM_SERVER_DEV_MODE=1 VLLM_API_KEY=... vllm serve MODEL --enable-scale-out \\
    --logprobs-mode processed_logprobs --generation-config vllm \\
    --worker-extension-cls {EXTENSION}.Extension \\
    --middleware {EXTENSION}.ApiKeyMiddleware"""
"""The command for starting a server by hand; docs/vllm.md has the same."""
INSECURE = "VLLM_ALLOW_INSECURE_SERIALIZATION"
"""vLLM takes pickled handles of GPU memory only with this variable set."""


class ChildServer:
    """``vllm serve`` under a supervisor, which ends it and all that it started when the thread that made it dies.

    number: among the servers that are started here, from 0; each has GPUs of its own. trainer_gpus: that none may use.
    """

    def __init__(
        self, config: VLLMConfig, arguments: Mapping[str, Any], number: int = 0, trainer_gpus: int = 0
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="align-vllm-"))
        self.log = self.directory / "server.log"
        self.key = secrets.token_urlsafe(32)
        port = free_port()  # kept when it is started again: all ranks know the address
        self.url = f"http://127.0.0.1:{port}"
        python = config.python or sys.executable
        command = [python, "-P", str(Path(__file__).with_name("supervisor.py"))]
        command += [python, "-P", "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--enable-scale-out"]
        command += ["--worker-extension-cls", f"{EXTENSION}.Extension", "--middleware", f"{EXTENSION}.ApiKeyMiddleware"]
        if config.weights != "files":
            command += transfer_flags(config.weights)
        environment = os.environ | {
            "VLLM_API_KEY": self.key,
            "VLLM_SERVER_DEV_MODE": "1",  # weights may be changed; the guard asks for the key
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # likewise
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONSAFEPATH": "1",  # vLLM starts further Pythons, which would import from the working directory
        }
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)  # the trainer's group is not the server's
        if config.weights == "ipc":
            environment[INSECURE] = "1"  # the guard asks for the key
        if config.servers > 1 or trainer_gpus:
            environment |= own_devices(number, config.tensor_parallel, trainer_gpus)
        self._command, self._environment = [*command, *flags(arguments)], environment
        self._starts, self._closed, self._lock = 0, False, threading.Lock()
        self._start()

    def _start(self) -> None:
        """Start it in a thread that lives as long as it must: Linux ends the supervisor with that thread."""
        with self._lock, open(self.log, "wb") as log:
            if self._closed:
                raise AlignError("is closed", where=self.url)
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_again(self, timeout: float) -> None:
        """Start it again at the same address, with a new log. Raises AlignError where it is not ready in time."""
        self.kill()
        self._starts += 1
        self.log = self.directory / f"server-{self._starts}.log"
        self._start()
        self.wait_until_ready(timeout)

    def last_words(self) -> str | None:
        """Return how the server ended and the last errors in its log; None while it runs and has logged no error."""
        for _ in range(20):  # what killed a connection may take a moment to end the process
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        code, errors = self.process.returncode, last_errors(self.log)
        if code is None and not errors:
            return None
        ended = "it still runs" if code is None else how_it_ended(code)
        return "\n    ".join(
            [f"{ended}; {'its log says' if errors else 'its log names no error'} ({self.log})", *errors]
        )

    def close(self) -> None:
        """End the server; its log stays if it had ended by itself."""
        failed = self.process.poll() is not None
        with self._lock:
            self._closed = True
        self.kill()
        if not failed:
            shutil.rmtree(self.directory, ignore_errors=True)

    def wait_until_ready(self, timeout: float) -> None:
        """Wait until it answers, ``timeout`` seconds after its start at most; it is ended where it does not.

        Raises AlignError with its last words.
        """
        try:
            self._await(timeout)
        except BaseException:
            self.kill()
            raise

    def _await(self, timeout: float) -> None:
        deadline = self.started + timeout
        with Client(self.url, key=self.key, timeout=5.0, retries=0) as client:
            while True:
                if self.process.poll() is not None:
                    raise AlignError(f"the vLLM server did not start: {self.last_words()}", where="rollout.generator")
                try:
                    client.get("/health")
                    return
                except Failed:
                    pass
                if time.monotonic() > deadline:
                    raise AlignError(
                        f"the vLLM server was not ready within {timeout:g} s ({self.last_words() or self.log})",
                        "set a longer start_timeout",
                        where="rollout.generator",
                    )
                time.sleep(0.2)

    def kill(self) -> None:
        """End the supervisor, which ends the server."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2 * GRACE)
        self.process.kill()
        self.process.wait()


def transfer_flags(backend: str) -> list[str]:
    """Return the flags of a server that takes weights from GPU to GPU. backend: ``nccl`` or ``ipc``."""
    return ["--weight-transfer-config", json.dumps({"backend": backend})]


def own_devices(number: int, each: int, skip: int = 0) -> dict[str, str]:
    """Return the environment that gives server ``number`` GPUs of its own, ``each`` of them; {} without GPUs.

    They are taken in turn from those that this process sees but the first ``skip``, from the start again when there are
    no more.
    """
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = visible or [str(index) for index in range(torch.cuda.device_count())]
    visible = visible[skip:] or visible
    taken = [visible[(number * each + i) % len(visible)] for i in range(each)] if visible else []
    return {"CUDA_VISIBLE_DEVICES": ",".join(taken)} if taken else {}


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as vLLM's command line takes them."""
    made = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            made.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            made += [f"--{flag}", *map(str, value)]
        elif value is not None:
            made += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return made


def last_errors(log: Path) -> list[str]:
    """The last exceptions in a log, each with the lines that go on with its message, without what vLLM puts before."""
    try:
        lines = log.read_bytes()[-(2**18) :].decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    lines = [_PREFIX.sub("", line).rstrip()[:300] for line in lines]
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines):
        if re.match(r"[\w.]*(Error|Exception)\b", line):
            more = [after for after in lines[number + 1 : number + 3] if after.startswith(" ") and "File " not in after]
            found.pop(line, None)  # the place of its last time
            found[line] = [line, *more]
    return [line for lines in list(found.values())[-3:] for line in lines]


def how_it_ended(code: int) -> str:
    """A process's exit status in words."""
    if code < 0:
        return f"the server was killed by {signal.Signals(-code).name}"
    return f"the server ended with status {code}"
