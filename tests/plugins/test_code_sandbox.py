"""The code sandbox: nothing gets out, nothing is left over, and nothing runs where it cannot be isolated."""

from __future__ import annotations

import json
import marshal
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.core.sandbox import sandbox as sandboxes
from align.core.sandbox.sandbox import Layers, Sandbox, SandboxError, frames
from align.core.sandbox.sandbox_runtime import landlock, seccomp
from align.schemas.errors import AlignError
from tests.plugins.escapes import PROBES, attempt, script, victims, works

ROOT = Path(__file__).parents[2]


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox.open()


def test_nothing_gets_out_and_nothing_is_left(sandbox: Sandbox) -> None:
    assert len(PROBES) >= 100
    assert attempt(sandbox) == {}


def test_namespaces_hold_by_themselves() -> None:
    alone = Sandbox(Layers(namespaces=True, landlock=False))
    if not works(alone):
        pytest.skip("namespaces are forbidden here, and the sandbox says so")
    assert attempt(alone) == {}


def test_nothing_gets_out_of_an_unprivileged_users_sandbox() -> None:
    """In a process that has given up root; with all layers, and with Landlock alone (as in most containers)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.plugins.nobody"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip("root without the right to mount: Python cannot be shown to others")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.pop("uid") != 0
    assert any(out is not None for out in said.values())
    assert [out for out in said.values() if out] == []


def test_the_probes_do_get_out_of_a_bare_interpreter() -> None:
    """So that silence above means something. Only what cannot hurt the machine is tried."""
    harmless = [name for name in PROBES if name.startswith(("writes: ", "network: TCP", "network: UDP", "network: l"))]
    harmless += [
        "reads: passwd",
        "reads: world-readable file",
        "reads: directory",
        "reads: symlink",
        "reads: hard link",
    ]
    harmless += ["reads: parent's command", "reads: own environment", "network: abstract unix", "network: unix path"]
    harmless += ["processes: signal 0 to the parent", "processes: fork", "processes: shell", "processes: subprocess"]
    harmless += [
        "processes: thread",
        "processes: exec",
        "processes: pidfd",
        "rights: memfd",
        "processes: outlive the parent",
    ]
    elsewhere = {"writes: standard library", "writes: device node", "writes: new root", "writes: shared memory"}
    for name in sorted(set(harmless) - elsewhere - {"writes: extended attribute", "writes: chown"}):
        with victims() as found:
            done = subprocess.run(
                [sys.executable, "-c", script(PROBES[name], found)],
                capture_output=True, cwd=found["DIRECTORY"], env={"CANARY": "sings"}, timeout=60,
            )  # fmt: skip
            assert b"OUT" in done.stdout, (name, done.stdout, done.stderr)


def test_the_parents_death_is_the_end(sandbox: Sandbox) -> None:
    """SIGKILL to the process that opened the sandbox; the mark in the environment finds what is left."""
    code = f"""
import sys, time
from align.core.sandbox import sandbox as s
s.ENVIRONMENT["MARK"] = sys.argv[1]
one = s.Sandbox({sandbox.layers!r}, 60.0)
one.program("import time; time.sleep(60)", "", time.monotonic() + 60)
""".replace("Layers(", "s.Layers(")
    from tests.plugins.escapes import survivors

    mark = f"align-orphan-{os.getpid()}"
    parent = subprocess.Popen([sys.executable, "-c", code, mark], cwd=ROOT)
    deadline = soon()
    while len(survivors(mark)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(survivors(mark)) == 2, "launcher and child"
    parent.kill()
    parent.wait()
    while survivors(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert survivors(mark) == {}


def test_refused_where_nothing_isolates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without Landlock whose namespaces are forbidden: said at once, with the fix; never a bare run."""
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    monkeypatch.setattr(sandboxes, "directories", lambda: ["/nowhere/at/all"])  # namespaces cannot be filled
    with pytest.raises(AlignError) as refused:
        Sandbox.open()
    assert "cannot be isolated here: the kernel has no Landlock; namespaces: " in str(refused.value)
    assert "code is never run without isolation" in str(refused.value)


def test_refused_on_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "supported", lambda: False)
    with pytest.raises(AlignError, match="run on Linux only"):
        Sandbox.open()


def test_a_layer_that_fails_later_is_not_done_without(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "directories", lambda: ["/nowhere/at/all"])
    with pytest.raises(SandboxError, match="No such file"):
        sandbox.program("print(1)", "", soon())


def test_an_interpreter_that_is_not_there_is_the_sandboxs_failure(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes, "python", lambda: "/nowhere/python")
    with pytest.raises(SandboxError, match="No such file"):
        sandbox.program("print(1)", "", soon())


def test_a_program_has_its_streams_and_the_standard_library(sandbox: Sandbox) -> None:
    source = "import sys, json, decimal, re\nprint(sum(map(int, sys.stdin)), input.__name__, __name__, len(sys.argv))"
    assert sandbox.program(source, "1\n2\n3", soon()).output == b"6 input __main__ 1\n"
    big = sandbox.program("print(len(input()))", "é" * 300_000, soon())
    assert big.output == b"300000\n", "more than a pipe holds"


def test_atexit_belongs_to_a_program(sandbox: Sandbox) -> None:
    ended = sandbox.program("import atexit; atexit.register(print, 2); print(1); raise SystemExit(3)", "", soon())
    assert (ended.output, ended.stopped) == (b"1\n2\n", "")


def test_the_same_code_gives_the_same_output(sandbox: Sandbox) -> None:
    outputs = {sandbox.program("print(set('abcdefgh'))", "", soon()).output for _ in range(3)}
    assert len(outputs) == 1


def test_calls_come_back_typed_and_a_death_costs_one(sandbox: Sandbox) -> None:
    source = """
import os
def f(x):
    if x == 1: os._exit(0)
    if x == 2: raise KeyError("assert 3")
    return {x: (0.5, [b"a", None, True], {2j})}
"""
    calls = [("f", marshal.dumps(((x,), {})), ()) for x in range(4)]
    returned = sandbox.calls(source, calls, soon())
    tree = '["dict", [[["int", "%s"], ["tuple", [["float", "0x1.0000000000000p-1"], '
    tree += '["list", [["bytes", "61"], ["none"], ["bool", true]]], '
    tree += '["set", [["complex", "0x0.0p+0", "0x1.0000000000000p+1"]]]]]]]]'
    expected = [json.loads(tree % "0x0"), None, ["raised", "KeyError"], json.loads(tree % "0x3")]
    assert returned.trees == expected
    assert (returned.stopped, returned.forged) == ("", False)


def test_frames_take_only_what_the_harness_writes() -> None:
    assert frames(b'n ["none"]\nn ["int","0x1"]\nn ["in', "n") == [["none"], ["int", "0x1"]], "an unfinished last line"
    for forged in (b'm ["none"]\n', b"\n", b"n\n", b'n {"a":1}\n', b'n "x"\n', b"n []\n", b"n [1]\n", b"\xff\xfe\n"):
        assert frames(forged, "n") is None
    assert frames(b"n " + b"[" * 100_000 + b"\n", "n") is None
    assert frames(b'n ["int",' + b"9" * 10_000 + b"]\n", "n") is None


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_as_its_tables_say(machine: str) -> None:
    """The assembled BPF, run by an interpreter written from the kernel's description."""
    column = list(seccomp.ARCHITECTURES).index(machine)
    architecture = seccomp.ARCHITECTURES[machine]
    program = seccomp.program(machine, 7)
    assert len(program) < 4096

    def decide(number: int, *arguments: int, arch: int = architecture) -> int:
        data = {0: number, 4: arch} | {16 + 8 * i: value for i, value in enumerate(arguments)}
        accumulator, at = 0, 0
        while True:
            code, yes, no, k = program[at]
            if code == 0x06:
                return k
            if code == 0x20:
                accumulator, skip = data.get(k, 0), 0
            else:
                skip = yes if (accumulator == k if code == 0x15 else accumulator >= k) else no
            at += 1 + skip

    assert {decide(pair[column]) for pair in seccomp.DENIED.values() if pair[column] is not None} == {seccomp.EPERM}
    assert {decide(number) for number in (425, 434, 435, 438, 447, 500)} == {seccomp.ENOSYS}
    assert decide(436) == decide(439) == decide(0 if machine == "x86_64" else 63) == seccomp.ALLOW  # close_range, read
    assert decide(0, arch=0x40000003) == seccomp.KILL, "i386"
    kill, fcntl, prlimit = (62, 72, 302) if machine == "x86_64" else (129, 25, 261)
    assert [decide(kill, pid) for pid in (7, 1, 0, 2**32 - 1)] == [seccomp.ALLOW, *[seccomp.EPERM] * 3]
    assert [decide(prlimit, pid) for pid in (0, 7)] == [seccomp.ALLOW, seccomp.EPERM]
    assert [decide(fcntl, 1, command) for command in (1, 3, 8, 15)] == [seccomp.ALLOW] * 2 + [seccomp.EPERM] * 2
    if machine == "x86_64":
        assert decide(0x40000000 | 39) == seccomp.KILL, "x32"
