"""Several vLLM servers, whose prompts are shared, which die, hang, come back and lie: real processes and real HTTP.

The servers are small ones of ours (fake_vllm.py); test_vllm_generator.py has the real vLLM.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import align.plugins.generators.vllm.server as server_module
from align.core.engine.processes import free_port
from align.core.generation.generator_base import Interrupt, Tokens
from align.core.util.http import Client
from align.plugins.generators.vllm import VLLM, one_server
from align.plugins.generators.vllm.child_server import own_devices
from align.plugins.generators.vllm.one_server import FIRST
from align.plugins.generators.vllm.server import ServerEngine
from align.schemas.errors import AlignError
from tests.plugins import fake_vllm
from tests.plugins.fake_vllm import Fake, drawn, logp_of

PROMPTS: list[Tokens] = [np.arange(1, 3 + n % 5, dtype=np.int32) + n for n in range(60)]
PARAMS = [{"seed": 100 + n} for n in range(60)]
PROBE = [(PROMPTS[0], PROMPTS[1]), (PROMPTS[2], PROMPTS[3])]
Make = Callable[..., ServerEngine]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make an engine; servers that it starts are the fake."""
    package = tmp_path / "packages" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for directory in (package, package.parent, package.parent.parent):
        (directory / "__init__.py").touch()
    (package / "api_server.py").write_text(Path(fake_vllm.__file__).read_text())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_VLLM_SEEN", str(tmp_path / "started"))
    monkeypatch.setattr(server_module, "checkpoint_tensors", lambda policy: iter([("w", policy)]))
    (tmp_path / "exchange").mkdir()
    made: list[ServerEngine] = []

    def engine(**settings: Any) -> ServerEngine:
        settings = {"timeout": 20.0, "start_timeout": 30.0, "exchange": str(tmp_path / "exchange")} | settings
        made.append(ServerEngine(VLLM.Config(mode="server", **settings), {"dtype": "float32"}))
        return made[-1]

    yield engine
    for each in made:
        each.close()
    assert list((tmp_path / "exchange").iterdir()) == []


@pytest.fixture
def fakes() -> Iterator[list[Fake]]:
    served = [Fake(), Fake()]
    for fake in served:
        threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield served
    for fake in served:
        fake.shutdown()
        fake.server_close()


def send(engine: ServerEngine, weights: float, version: int = 0) -> None:
    engine.sync(torch.tensor([weights]), version, adapter=False)  # type: ignore[arg-type]  # see ``make``


def phase(engine: ServerEngine, stop: Callable[[], bool] = lambda: False) -> list[list[int]]:
    """The completions of all prompts."""
    found: dict[int, list[int]] = {}
    engine.answers(PROMPTS, PARAMS, stop, lambda number, sample: found.update({number: sample.tokens.tolist()}))
    return [found[number] for number in range(len(PROMPTS))]


def expected(weights: float) -> list[list[int]]:
    return [drawn(weights, p.tolist(), each["seed"]) for p, each in zip(PROMPTS, PARAMS, strict=True)]


def started(tmp_path: Path) -> list[int]:
    return [int(line) for line in (tmp_path / "started").read_text().split()]


def until(what: Callable[[], Any]) -> None:
    for _ in range(1000):
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


# --- servers by address ----------------------------------------------------------------------------------------------


def test_prompts_are_shared_and_the_samples_do_not_depend_on_it(make: Make, fakes: list[Fake]) -> None:
    both, alone = make(url=[fake.url for fake in fakes]), None
    send(both, 2.5)
    assert [fake.weights for fake in fakes] == [2.5, 2.5] and fakes[0].label == fakes[1].label != FIRST
    assert phase(both) == expected(2.5)
    assert [fake.answered for fake in fakes] == [30, 30]
    fakes[0].behaviour = {"seconds": 0.2}
    both.close()
    alone = make(url=fakes[1].url)
    send(alone, 2.5)
    assert phase(alone) == expected(2.5)


def test_every_server_is_asked_by_the_gate(make: Make, fakes: list[Fake]) -> None:
    engine = make(url=[fake.url for fake in fakes])
    send(engine, 1.0)
    for server, fake in zip(engine.in_use, fakes, strict=True):
        before = [each.answered for each in fakes]
        found = engine.only(server).logp(PROBE)
        for values, (_, answer) in zip(found, PROBE, strict=True):
            assert values.tolist() == pytest.approx([logp_of(1.0, int(token)) for token in answer])
        assert [each.answered - was for each, was in zip(fakes, before, strict=True)] == [
            2 * (each is fake) for each in fakes
        ]


def test_one_that_takes_the_label_and_not_the_weights_is_seen_by_the_gate(make: Make, fakes: list[Fake]) -> None:
    from align.core.generation.generator_base import Generator

    config = VLLM.Config(mode="server", url=[fake.url for fake in fakes])
    generator = VLLM(config)
    generator.started = make(url=[fake.url for fake in fakes])
    fakes[1].behaviour = {"keeps_weights": True}
    send(generator.started, 3.0)
    engines = generator.engines
    assert all(isinstance(each, Generator) for each in engines)
    assert [each.title for each in engines] == [f"vllm at {fake.url}" for fake in fakes]
    right, wrong = (each.logp(PROBE)[0][0] for each in engines)
    assert right == pytest.approx(logp_of(3.0, int(PROBE[0][1][0]))) and right != wrong


def test_one_that_is_gone_leaves_its_prompts_to_the_others_and_has_to_catch_up(
    make: Make, fakes: list[Fake], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    process = served_at(port, tmp_path)
    try:
        url = f"http://127.0.0.1:{port}"
        engine = make(url=[fakes[0].url, url])
        send(engine, 1.0)
        for server in engine.in_use:
            engine.only(server).logp(PROBE)  # the gate
        with Client(url) as client:
            client.post("/behave", {"die_after": 8})
        assert phase(engine) == expected(1.0)
        assert f"{url} is left out" in capfd.readouterr().err
        assert process.wait(10) == -signal.SIGKILL
        send(engine, 2.0, 1)  # without it
        assert phase(engine) == expected(2.0)
        process = served_at(port, tmp_path)  # with the weights that it once began with
        until(lambda: engine.servers[1].out is None or engine.servers[1].is_back())
        with Client(url) as client:
            assert client.get("/seen")["weights"] == 2.0
            assert phase(engine) == expected(2.0)
            assert client.get("/seen")["answered"] > len(PROBE)
    finally:
        process.kill()
        process.wait()


def served_at(port: int, tmp_path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, fake_vllm.__file__, "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"FAKE_VLLM_SEEN": str(tmp_path / "elsewhere")})
    with Client(f"http://127.0.0.1:{port}", retries=6) as client:
        client.get("/health")
    return process


def test_one_that_comes_back_and_keeps_old_weights_is_never_asked(
    make: Make, fakes: list[Fake], capfd: pytest.CaptureFixture[str]
) -> None:
    engine = make(url=[fake.url for fake in fakes])
    send(engine, 1.0)
    for server in engine.in_use:
        engine.only(server).logp(PROBE)
    fakes[1].behaviour, fakes[1].weights, fakes[1].label = {"keeps_weights": True}, 0.0, FIRST
    before = fakes[1].answered
    until(lambda: engine.servers[1].strikes >= server_module.STRIKES)
    assert phase(engine) == expected(1.0)
    assert fakes[1].label != engine.label and fakes[1].answered > before  # asked the probe, and nothing counted
    assert "scores the sync gate's probe otherwise" in capfd.readouterr().err


def test_labels_of_somebody_else_stop_the_run(make: Make, fakes: list[Fake]) -> None:
    engine = make(url=[fake.url for fake in fakes])
    send(engine, 1.0)
    fakes[0].label = "theirs"
    with pytest.raises(AlignError, match=r"labelled theirs.*somebody else uses it"):
        phase(engine)
    assert fakes[0].label == "theirs"


def test_none_left_names_each_and_why(make: Make, fakes: list[Fake]) -> None:
    engine = make(url=[fake.url for fake in fakes], timeout=6.0)
    send(engine, 1.0)
    fakes[0].behaviour = {"hang_after": fakes[0].asked}
    fakes[1].behaviour = {"fails": True}
    with pytest.raises(AlignError) as error:
        phase(engine)
    text = str(error.value)
    assert "none of 2 vLLM servers is left" in text
    assert f"{fakes[0].url}: finished no answer within 6 s" in text
    assert f"{fakes[1].url}: answered 500: it fails" in text


def test_a_slow_one_does_less_and_a_stop_is_heeded(make: Make, fakes: list[Fake]) -> None:
    engine = make(url=[fake.url for fake in fakes])
    send(engine, 1.0)
    fakes[0].behaviour = {"hang_after": fakes[0].asked}
    with pytest.raises(Interrupt):
        phase(engine, stop=lambda: fakes[1].answered >= 30)


def test_at_the_start_one_may_be_away_but_not_all(
    make: Make, fakes: list[Fake], capfd: pytest.CaptureFixture[str]
) -> None:
    away = "http://127.0.0.1:9"
    engine = make(url=[fakes[0].url, away])
    assert f"{away} is left out" in capfd.readouterr().err
    send(engine, 4.0)
    assert phase(engine) == expected(4.0)
    with pytest.raises(AlignError, match="cannot be reached"):
        make(url=[away, "http://127.0.0.1:10"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": []}, "names no address"),
        ({"url": ["http://127.0.0.1:1", "http://127.0.0.1:1/"]}, "twice"),
        ({"url": "http://127.0.0.1:1", "servers": 2}, "servers: not for"),
        ({"url": "https://gpu-1:8000", "weights": "ipc"}, "shares memory of one machine"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AlignError, match=words):
        VLLM(VLLM.Config(mode="server", **settings))._check()


# --- servers that are started here -----------------------------------------------------------------------------------


def test_one_that_dies_in_a_phase_is_replaced_with_the_current_weights(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_VLLM", json.dumps({"seconds": 0.05}))
    engine = make(servers=2)
    send(engine, 5.0)
    with Client(engine.servers[0].url, key=engine.servers[0].child.key) as client:  # type: ignore[union-attr]
        client.post("/behave", {"die_after": 12})
    assert phase(engine) == expected(5.0)
    until(lambda: len(started(tmp_path)) == 3 and engine.servers[0].current_label() == engine.label)
    assert "killed by SIGKILL" in capfd.readouterr().err
    send(engine, 6.0, 1)
    assert phase(engine) == expected(6.0) and not [server for server in engine.servers if server.out]


def test_the_only_one_is_replaced_and_the_budget_ends(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_FIRST", json.dumps({"die_after": 12}))
    engine = make(restarts=1)
    send(engine, 5.0)
    assert phase(engine) == expected(5.0)
    first, second = started(tmp_path)
    os.kill(second, signal.SIGKILL)
    until(lambda: engine.servers[0].gone)
    with pytest.raises(AlignError, match="killed by SIGKILL"):
        phase(engine)
    assert started(tmp_path) == [first, second]


def test_one_that_hangs_is_replaced(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_FIRST", json.dumps({"hang_after": 12}))
    engine = make(timeout=5.0)
    send(engine, 5.0)
    assert phase(engine) == expected(5.0)
    assert len(started(tmp_path)) == 2


def test_weights_left_by_a_killed_process_are_removed(
    make: Make, fakes: list[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = tmp_path / "exchange"
    (exchange / (server_module._mark(2**22 + 1) + "weights-abc")).mkdir()  # above the largest process id
    alive, other = exchange / (server_module._mark(os.getppid()) + "weights-abc"), exchange / "align-x"
    alive.mkdir(), other.mkdir()
    make(url=fakes[0].url)
    assert sorted(exchange.iterdir()) == sorted([alive, other])
    alive.rmdir(), other.rmdir()


def test_each_server_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [own_devices(number, 2)["CUDA_VISIBLE_DEVICES"] for number in range(3)] == ["4,5", "6,7", "4,5"]
    assert own_devices(1, 1, skip=2)["CUDA_VISIBLE_DEVICES"] == "7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert own_devices(1, 2) == {}


def test_a_server_that_failed_and_says_nothing_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's server may outlive its dead engine without an answer; one that was started since is loading its model."""
    monkeypatch.setattr(one_server, "DEAF", 0.05)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    child: Any = SimpleNamespace(process=process, started=time.monotonic(), last_words=lambda: None, close=process.kill)
    server = one_server.Server("http://127.0.0.1:9", None, 1.0, child=child)
    try:
        server.end_if_deaf()  # it has not failed
        server.leave_out(AlignError("broke off"))
        child.started = time.monotonic()
        time.sleep(0.1)
        server.end_if_deaf()
        assert process.poll() is None
        child.started = 0.0
        server.end_if_deaf()
        assert process.wait(10) == -signal.SIGTERM
    finally:
        server.close()
