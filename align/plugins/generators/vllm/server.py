"""vLLM servers that all ranks use over HTTP: started here, or running already; prompts are shared among them.

Each weight update ends with a label of its own, which vLLM puts on every answer drawn from those weights. An answer
with another label (the server was restarted, or somebody else sent weights) never counts: the prompt goes to a server
again. Rank 0 watches: a server started here that ends is started again within a budget, and any server that has
older weights gets the last update's files, is held against another server's answers to the sync gate, and only then
gets the label with which the ranks give it prompts.
"""

from __future__ import annotations

import copy
import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from align import AlignError, Sample
from align.files import sha256
from align.generators import Floats, Interrupt, Tokens
from align.http import Failed, Refused, secret
from align.plugins.generators.vllm.arguments import VLLMConfig
from align.plugins.generators.vllm.child_server import BY_HAND, INSECURE, ChildServer, transfer_flags
from align.plugins.generators.vllm.one_server import (
    BEGUN,
    FIRST,
    GENERATE,
    STRIKES,
    Server,
    Stale,
    Update,
    generate_request,
    scored,
    scoring_request,
)
from align.plugins.generators.vllm.weights import adapter_of, adapter_tensors, checkpoint_tensors, save_adapter
from align.processes import all_gather_objects, rank

if TYPE_CHECKING:
    from align.models import Policy

SHARD = 2**31
"""Bytes of weights in one file."""
WINDOW = 256
"""Requests under way at one server; what is left waits for the server that is free first."""
TRIES = 5
"""Failures of one prompt, besides those that restarts explain, after which it is the prompt's fault."""
WATCH = 0.5
"""Seconds between two looks of rank 0 at a server."""
ROUNDING = {"float32": 1e-3}
"""Largest difference, in nats, of two servers' answers to the sync gate, by dtype; any other: 0.25, as the gate has."""
WHERE = "rollout.generator"


class ServerEngine:
    """The client of all servers: samples from them, and sends them weights. Rank 0 starts, watches and sends."""

    def __init__(self, config: VLLMConfig, arguments: Mapping[str, Any]) -> None:
        self.config, self.timeout = config, config.timeout
        self.label: str | None = None  # of the last update; "": one has begun, and no answer counts
        self.update: Update | None = None  # its files, which a server that comes back takes
        self.sender: Any = None
        self.tolerance = ROUNDING.get(str(arguments.get("dtype")), 0.25)
        self._sent: set[str] = set()
        self._sending, self._restarts = threading.Lock(), threading.Semaphore(config.restarts)
        self._closing, self._closed = threading.Event(), threading.Event()
        self.servers: list[Server] = []
        if config.urls:
            key = secret(config.key_env, config.key_file)
            self.servers = [Server(url, key, self.timeout) for url in config.urls]
            try:
                self._check_can_follow()
            except BaseException:
                self.close()
                raise
        else:
            self.servers = self._started(arguments)
        if rank() == 0:
            _sweep(config.exchange)
            for server in self.servers:
                threading.Thread(target=self._watch, args=(server,), name="align-vllm-watch", daemon=True).start()

    def only(self, server: Server) -> ServerEngine:
        """Return a view that asks this server alone."""
        view = copy.copy(self)
        view.servers = [server]
        return view

    @property
    def in_use(self) -> list[Server]:
        """The servers that this rank gives prompts now."""
        return [server for server in self.servers if server.out is None]

    def answers(
        self,
        prompts: Sequence[Tokens],
        params: Sequence[Mapping[str, Any]],
        stop: Callable[[], bool],
        finished: Callable[[int, Sample], None],
    ) -> None:
        """Sample a completion of each prompt; ``finished`` is called with its number and it, as each is finished.

        Raises AlignError with the servers' own messages where none is left, at the latest after ``timeout``.
        """

        def ask(number: int, adapter: str | None) -> dict[str, Any]:
            return generate_request(prompts[number], params[number], adapter)

        def read(number: int, reply: dict[str, Any]) -> None:
            choice = reply["choices"][0]
            if choice["finish_reason"] not in ("stop", "length"):
                raise AlignError(f"the vLLM server ended an answer with {choice['finish_reason']!r}", where=WHERE)
            logp = [entry["logprob"] for entry in choice["logprobs"]["content"]]
            tokens = np.array(choice["token_ids"], np.int32)
            finished(number, Sample(tokens, np.array(logp, np.float32), choice["finish_reason"]))

        self._request(len(prompts), ask, stop, read)

    def logp(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> list[Floats]:
        """See ``Generator.logp``."""
        found: dict[int, Floats] = {}

        def ask(number: int, adapter: str | None) -> dict[str, Any]:
            return scoring_request(*sequences[number], adapter)

        def read(number: int, reply: dict[str, Any]) -> None:
            found[number] = scored(reply, sequences[number][1])

        self._request(len(sequences), ask, lambda: False, read)
        in_order = [found[number] for number in range(len(sequences))]
        if len(self.servers) == 1 and self.servers[0].gate is None:
            self.servers[0].gate = (sequences, in_order)
        return in_order

    def sync(self, policy: Policy, version: int, adapter: bool) -> None:
        """Send the policy's weights, or its adapter alone; all of it is there and checked before any of it is taken.

        A server that cannot be reached gets them when it is back.
        """
        label = all_gather_objects(f"{secrets.token_hex(8)}-{version}")[0]
        with self._sending:
            self.label = ""  # whatever fails from here on, no answer counts
            self._sent.add(label)
            failed: AlignError | None = None
            if adapter:
                failed = self._write_adapter(policy, label)
            elif self.config.weights != "files":
                failed = self._transfer(policy, label)
            else:
                failed = self._write(policy, label)
            troubles = all_gather_objects(None if failed is None else str(failed))
            if failed is not None:
                raise failed
            # Every rank must stop where one has failed: the others would wait for it at the next collective call.
            if elsewhere := [trouble for trouble in troubles if trouble is not None]:
                raise AlignError(elsewhere[0], where=WHERE)
            for server in self.servers:
                server.begin(label, label if adapter else None)
            self.label = label

    def close(self) -> None:
        """Stop the servers that were started here."""
        self._closing.set()
        if self.sender is not None:
            self.sender.shutdown()
        for server in self.servers:
            server.close()
        if self.update is not None:
            shutil.rmtree(self.update.directory, ignore_errors=True)
        self.sender = self.update = None
        self.servers = []
        self._closed.set()

    # --- requests ----------------------------------------------------------------------------------------------------

    def _request(
        self,
        count: int,
        ask: Callable[[int, str | None], dict[str, Any]],
        stop: Callable[[], bool],
        finished: Callable[[int, dict[str, Any]], None],
    ) -> None:
        """Have ``count`` requests answered, each by the server with the fewest under way; what fails goes to another.

        ask: makes a request from its number and the adapter's name. finished: called with the number and each reply.
        """
        if self.label == "":
            raise AlignError("the last weights did not arrive; what is labelled otherwise does not count", where=WHERE)
        waiting, tries = deque(range(count)), [0] * count
        flying: dict[Future[dict[str, Any]], tuple[Server, int]] = {}
        alive = time.monotonic()
        for server in self.servers:
            server.flying, server.answered = 0, alive
        try:
            while waiting or flying:
                self._hand_out(waiting, ask, flying)
                done = wait(flying, timeout=0.2, return_when=FIRST_COMPLETED).done if flying else set()
                for future in done:
                    server, number = flying.pop(future)
                    server.flying -= 1
                    failure = self._read(server, number, future, finished)
                    if failure is None:
                        alive = server.answered = time.monotonic()
                        continue
                    waiting.append(number)
                    tries[number] += 1
                    self._leave_out(server, failure)
                    if tries[number] > TRIES + self.config.restarts:
                        raise server.with_last_words(failure)
                if stop():
                    raise Interrupt
                self._drop_what_hangs(flying, waiting)
                self._wait_for_one(alive)
        finally:
            for future in flying:
                future.cancel()

    def _hand_out(
        self,
        waiting: deque[int],
        ask: Callable[[int, str | None], dict[str, Any]],
        flying: dict[Future[dict[str, Any]], tuple[Server, int]],
    ) -> None:
        """Send what waits to the servers in use, the one with the fewest requests first."""
        while waiting:
            free = [server for server in self.in_use if server.flying < WINDOW]
            if not free:
                return
            server, number = min(free, key=lambda each: each.flying), waiting.popleft()
            if server.flying == 0:
                server.answered = time.monotonic()
            limit = self.timeout * WINDOW  # requests wait for each other; ``_drop_what_hangs`` ends them before
            content = ask(number, server.adapter)
            flying[server.once.submit("POST", GENERATE, content, timeout=limit)] = server, number
            server.flying += 1

    def _read(
        self,
        server: Server,
        number: int,
        future: Future[dict[str, Any]],
        finished: Callable[[int, dict[str, Any]], None],
    ) -> AlignError | None:
        """Take a reply; return the failure after which the prompt goes to a server again. Raises any other."""
        try:
            reply = future.result()
            server.check(reply)
        except Refused as error:
            raise server.with_last_words(error) from None
        except Stale as error:
            try:
                label = server.current_label()
            except Failed:
                return error
            if not self._may_be_replaced(label, server):
                raise
            return error
        except Failed as error:
            return error
        server.strikes = 0
        finished(number, reply)
        return None

    def _may_be_replaced(self, label: str, server: Server) -> bool:
        """True for weights that a restart or an update of ours left there; others are somebody else's."""
        return label in {FIRST, server.label} or label.removesuffix(BEGUN) in self._sent

    def _leave_out(self, server: Server, why: AlignError) -> None:
        """Give a server no prompts until it is back."""
        if server.out is None and len(self.servers) > 1:
            _say(f"{server.url} is left out until it is back: {why.problems[0].what}")
        server.leave_out(why)

    def _drop_what_hangs(self, flying: dict[Future[dict[str, Any]], tuple[Server, int]], waiting: deque[int]) -> None:
        """Take the prompts of a server that has finished none within ``timeout`` from it, and end it if it is ours."""
        for server in self.in_use:
            if not server.flying or time.monotonic() - server.answered <= self.timeout:
                continue
            self._leave_out(server, AlignError(f"finished no answer within {self.timeout:g} s", where=server.url))
            if server.child is not None:
                server.child.process.terminate()  # its watcher starts it again
            for future in [each for each, (at, _) in flying.items() if at is server]:
                future.cancel()
                waiting.append(flying.pop(future)[1])
            server.flying = 0

    def _wait_for_one(self, alive: float) -> None:
        """Look at the servers that are left out. Raises AlignError where none is in use, and none will be in time."""
        for server in self.servers:
            if server.out is not None:
                server.is_back()
                server.end_if_deaf()
        if self.in_use:
            return
        limit = self.timeout
        if any(server.home is not None and server.gone is None for server in self.servers):
            limit += self.config.start_timeout  # it is being started again
        hopeless = all(server.is_hopeless for server in self.servers)
        if not hopeless and time.monotonic() - alive <= limit:
            time.sleep(0.1)
            return
        errors = [server.with_last_words(server.out) for server in self.servers if server.out is not None]
        if len(errors) == 1:
            raise AlignError(errors[0].problems[0].what, errors[0].problems[0].fix, where=self.servers[0].url)
        words = "\n    ".join(f"{s.url}: {e.problems[0].what}" for s, e in zip(self.servers, errors, strict=True))
        raise AlignError(f"none of {len(errors)} vLLM servers is left\n    {words}", where=WHERE)

    # --- starting and watching ---------------------------------------------------------------------------------------

    def _started(self, arguments: Mapping[str, Any]) -> list[Server]:
        """Start the servers on rank 0, all at once; return their clients on every rank."""
        children: list[ChildServer] = []
        trouble = None
        # NCCL refuses two members on one GPU.
        trainer_gpus = len(all_gather_objects(None)) if self.config.weights == "nccl" else 0
        if rank() == 0:
            try:
                for number in range(self.config.servers):
                    children.append(ChildServer(self.config, arguments, number, trainer_gpus))
                for child in children:
                    child.wait_until_ready(self.config.start_timeout)
            except BaseException as error:
                for child in children:
                    child.close()
                if not isinstance(error, AlignError):
                    raise
                trouble = error
        own = [(child.url, child.key, child.directory) for child in children]
        places, failed = all_gather_objects((own, None if trouble is None else str(trouble)))[0]
        if failed is not None:
            raise trouble or AlignError(failed, where=WHERE)
        held: list[ChildServer | None] = [*children] or [None] * len(places)
        return [Server(url, key, self.timeout, home, c) for (url, key, home), c in zip(places, held, strict=True)]

    def _watch(self, server: Server) -> None:
        """Tend a server until the end; the thread outlives the server, which Linux would end with it."""
        while not self._closing.wait(WATCH):
            try:
                self._tend(server)
            except Exception as error:  # whatever it is: without its thread the server would end
                if not self._closing.is_set():
                    server.strikes += 1
                    _say(f"{server.url}: {error}")
        self._closed.wait()

    def _tend(self, server: Server) -> None:
        """Start it again where it has ended, and give it the current weights where it has others."""
        child = server.child
        if child is not None and child.process.poll() is not None and server.gone is None:
            words = child.last_words() or ""
            if not self._restarts.acquire(blocking=False):
                server.give_up(words)
                return
            _say(f"{server.url}: {words}; it is started again")
            server.loaded = None
            child.start_again(self.config.start_timeout)
        if self.update is None or server.strikes >= STRIKES:
            return
        with self._sending:  # else it could get the last weights while the next ones are sent
            if self._closing.is_set() or not self.label:
                return
            try:
                label = server.current_label()
            except Failed:
                return
            if label == server.label or not self._may_be_replaced(label, server):
                return
            if label == FIRST:
                server.loaded = None
            server.take(self.update, partial(self._compare, server))
            _say(f"{server.url} has the current weights again")

    def _compare(self, server: Server) -> None:
        """Raise AlignError where a server answers the sync gate's questions otherwise than one that passed it."""
        passed = next((other.gate for other in self.servers if other.gate is not None), None)
        if passed is None:
            return
        found, expected = np.concatenate(server.logp(passed[0])), np.concatenate(passed[1])
        gap = float(np.max(np.abs(found - expected)))
        if not gap <= self.tolerance:
            what = f"has taken the weights and scores the sync gate's probe otherwise than before, by {gap:.3g}"
            raise AlignError(what, where=server.url)

    # --- weights -----------------------------------------------------------------------------------------------------

    def _check_can_follow(self) -> None:
        """Raise AlignError where a server that runs already lacks the routes that weight updates need, or none runs."""
        files = self.config.weights == "files"
        more = "" if files else f" \\\n    {shlex.join(transfer_flags(self.config.weights))}"
        before = f"{INSECURE}=1 " if self.config.weights == "ipc" else ""
        advice = f"it must have been started with\n    {before}{BY_HAND}{more}"
        for server in self.servers:
            try:
                server.label = server.current_label()
            except KeyError:
                raise AlignError("does not say which weights it has", advice, where=server.url) from None
            except Failed as error:
                server.leave_out(AlignError(error.problems[0].what, advice, where=server.url))
                if error.status is not None:
                    assert server.out is not None
                    raise server.out from None
        absent = {server.url: server.out for server in self.servers if server.out is not None}
        if len(absent) == len(self.servers):
            raise next(iter(absent.values()))
        for url, why in absent.items():
            _say(f"{url} is left out until it is back: {why.problems[0].what}")

    def _write(self, policy: Policy, label: str) -> AlignError | None:
        """Weights by way of files. Every rank gathers; rank 0 writes, and has them checked and taken."""
        shards = _shards(policy)
        if rank() != 0:
            for _ in shards:
                pass
            return None

        def write(directory: Path) -> None:
            for number, shard in enumerate(shards):
                save_file(shard, directory / f"{number:05d}.safetensors")

        failed = self._by_files("weights", label, write, "align_load")
        for _ in shards:  # what a failure left: the other ranks wait for this one to gather it
            pass
        return failed

    def _write_adapter(self, policy: Policy, label: str) -> AlignError | None:
        """Send the adapter by way of files, which rank 0 writes; a server knows it by the label.

        Every rank gathers.
        """
        config, tensors = adapter_of(policy), adapter_tensors(policy)
        assert config is not None
        if rank() != 0:
            return None
        return self._by_files("adapter", label, partial(save_adapter, config, tensors), "align_verify")

    def _by_files(self, what: str, label: str, write: Callable[[Path], None], method: str) -> AlignError | None:
        """Have the servers take files that ``write`` puts into a directory; return what went wrong.

        method: see ``Update``. The files stay for servers that come back, until the next ones are there.
        """
        before = None if self.update is None else self.update.directory
        directory = None
        try:
            directory = Path(tempfile.mkdtemp(prefix=f"{_mark()}{what}-", dir=self.config.exchange))
            write(directory)
            manifest = {path.name: sha256(path) for path in sorted(directory.iterdir())}
            update = Update(label, directory, manifest, method, adapter=method == "align_verify")
            failed = self._all_take(update)
            if failed is None:
                self.update, directory = update, before
            return failed
        except AlignError as error:
            return error
        except OSError as error:
            return AlignError(f"the {what} could not be written: {error}", "give exchange a larger disk", where=WHERE)
        finally:
            if directory is not None and (self.update is None or directory != self.update.directory):
                shutil.rmtree(directory, ignore_errors=True)

    def _all_take(self, update: Update) -> AlignError | None:
        """Have all servers take an update, at the same time; return what went wrong where it is no server's own fault.

        A server that is not reached takes it when it is back. So does one that refuses what another one takes.
        """

        def give(server: Server) -> AlignError | None:
            try:
                server.take(update)
            except AlignError as error:
                return server.with_last_words(error)
            return None

        with ThreadPoolExecutor(len(self.servers)) as pool:
            failures = list(pool.map(give, self.servers))
        missing = [s for s, failure in zip(self.servers, failures, strict=True) if failure and _is_away(s, failure)]
        refused = [f for s, f in zip(self.servers, failures, strict=True) if f is not None and s not in missing]
        if len(refused) == len(self.servers):
            return refused[0]
        for server, failure in zip(self.servers, failures, strict=True):
            if failure is not None:
                _say(f"{server.url} gets the weights when it is back: {failure.problems[0].what}")
        return None

    def _transfer(self, policy: Policy, label: str) -> AlignError | None:
        """Weights by vLLM's own transfer, from GPU to GPU. Written to its sources, and never run."""
        import torch

        if not torch.cuda.is_available():
            return AlignError(f"is {self.config.weights}, and the trainer has no GPU", "use files", where="weights")
        from align.plugins.generators.vllm.transfer import Sender

        found = all_gather_objects([_reached(server) for server in self.servers] if rank() == 0 else [])[0]
        members = [(server, *state) for server, state in zip(self.servers, found, strict=True) if state is not None]
        if not members:
            return AlignError("no vLLM server can be reached", where=WHERE)
        urls = [server.url for server, _, _ in members]
        restarted = any(label not in self._sent for _, _, label in members)
        if self.sender is None or restarted or self.sender.urls != urls:  # a group cannot lose or gain members
            if self.sender is not None:
                self.sender.shutdown()
            workers = {server: number for server, number, _ in members}
            self.sender = Sender(self.config.weights, workers)
        failed: AlignError | None = self.sender.send(policy, label, self.timeout)
        if failed is not None:
            self.sender = None  # it may still wait in it, so it is left as it is
        return failed


def _reached(server: Server) -> tuple[int, str] | None:
    """Return a server's number of workers and the label of its weights; None where it cannot be reached."""
    try:
        return server.workers(), server.current_label()
    except Failed:
        return None


def _is_away(server: Server, failure: AlignError) -> bool:
    """True for a server that ended or was not reached; False for one that answered with an error."""
    ended = server.child is not None and server.child.process.poll() is not None
    return ended or (isinstance(failure, Failed) and failure.status is None)


def _say(words: str) -> None:
    if rank() == 0:
        print(f"vLLM server {words}", file=sys.stderr, flush=True)


def _mark(pid: int | None = None) -> str:
    """Return the beginning of the names of a process's directories of weights."""
    return f"align-{socket.gethostname()}-{os.getpid() if pid is None else pid}-"


def _sweep(exchange: str | None) -> None:
    """Remove the weights that processes of this machine have left which were killed."""
    beginning = _mark(0).removesuffix("0-")
    for directory in Path(exchange or tempfile.gettempdir()).glob(f"{beginning}*-*"):
        pid = directory.name.removeprefix(beginning).split("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(directory, ignore_errors=True)
        except (PermissionError, ValueError):  # it lives as another user's; the name is no process's
            pass


def _shards(policy: Policy) -> Iterator[dict[str, Tensor]]:
    """The policy's tensors on the CPU, in portions of at most ``SHARD`` bytes (or one tensor)."""
    held: dict[str, Tensor] = {}
    size = 0
    for name, tensor in checkpoint_tensors(policy):
        here = tensor.detach().cpu().contiguous()
        if held and size + here.nbytes > SHARD:
            yield held
            held, size = {}, 0
        held[name] = here
        size += here.nbytes
    if held:
        yield held
