"""Killable workers, with rewards that really hang, crash and eat memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from align.core.rewards.reward_base import Answer, RewardContext, Score
from align.core.rewards.worker_pool import Workers
from align.schemas.errors import AlignError
from align.schemas.run import RewardChoice

SOURCE = Path(__file__).parents[1] / "hostile_rewards.py"
LIMIT = 0.5


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the path in which the plugin is installed."""
    shutil.copy(SOURCE, tmp_path / "hostile_rewards.py")
    info = tmp_path / "hostile_rewards-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile-rewards\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[align]\nhostile = hostile_rewards\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def workers(site: Path) -> Iterator[Workers]:
    made = opened(site)
    yield made
    made.close()


def opened(site: Path, seconds: float = LIMIT, count: int = 2, **settings: bool) -> Workers:
    choice = RewardChoice(type="hostile", settings=settings)
    return Workers(choice, seconds, count=count, memory=2 * 2**30, place=RewardContext(site))


def answers(*texts: str) -> list[Answer]:
    return [Answer("q", text, text) for text in texts]


def group_of(zygote: int) -> list[int]:
    """Processes of the zygote's session or descended from it, itself included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] not in "ZX" and (int(fields[3]) == zygote or int(fields[1]) == zygote):
            found.append(int(stat.parent.name))
    return sorted({*found, *([zygote] if Path(f"/proc/{zygote}/stat").exists() else [])})


def wait_for(true: object, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:  # type: ignore[operator]
        time.sleep(0.01)
    return bool(true())  # type: ignore[operator]


def zygote_of(site: Path) -> int:
    return int((site / "opened").read_text())


def test_scores_come_in_order_whole_and_from_several_workers(workers: Workers) -> None:
    said = workers.score(answers(*map(str, range(200)), "none"))
    assert [score.value for score in said] == [*map(float, range(200)), None]
    assert said[3].outcome == "right" and said[3].parts == {"size": 1.0} and said[-1].outcome == "abstained"
    assert len({score.why for score in said[:200]}) == 2
    assert workers.score([]) == []


@pytest.mark.parametrize("deed", ["spin", "c loop", "sleep", "stop", "ignore"])
def test_what_hangs_is_killed_at_its_deadline(workers: Workers, deed: str) -> None:
    workers.score(answers("1"))
    started = time.monotonic()
    said = workers.score(answers("1", deed, "2", "3"))
    assert [score.value for score in said] == [1.0, None, 2.0, 3.0]
    assert said[1].outcome == "timeout" and said[1].why == "took longer than 0.5 s"
    assert time.monotonic() - started >= LIMIT
    assert workers.score(answers("4"))[0].value == 4.0


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        ("exit", "its worker process died (exit 3)"),
        ("segfault", "its worker process died (SIGSEGV)"),
        ("memory", "needed more than 2 GiB of memory"),
        ("raise", "ZeroDivisionError: division by zero"),
        ("recursion", "RecursionError: maximum recursion depth exceeded"),
        ("sys.exit", "SystemExit: 3"),
        ("two", "ValueError: gave 2 scores for 1 answer"),
        ("close", "its worker process died"),
        ("no number", "ValueError: could not convert string to float: 'no number'"),
    ],
)
def test_what_fails_costs_its_answer_alone(workers: Workers, deed: str, why: str) -> None:
    said = workers.score(answers("1", deed, "2", deed, "3"))
    assert [score.value for score in said] == [1.0, None, 2.0, None, 3.0]
    assert {said[1].outcome, said[3].outcome} == {"error"}
    assert said[1].why.startswith(why)


def test_each_answer_has_its_own_time(workers: Workers) -> None:
    (_, quick), (late, slow), _ = workers.timed(answers("1", "spin", "2"))
    assert late.outcome == "timeout" and slow >= LIMIT and quick != slow


def test_a_reply_too_long_is_an_error(site: Path) -> None:
    """Given time enough: to write so long a reply takes a busy machine longer than the others' limit."""
    workers = opened(site, seconds=60)
    said = workers.score(answers("1", "long", "2"))
    workers.close()
    assert [score.value for score in said] == [1.0, None, 2.0]
    assert said[1].outcome == "error" and "bytes" in said[1].why


def test_a_reward_that_scribbles_on_the_line_is_an_error(workers: Workers) -> None:
    said = workers.score(answers("1", "write", "2"))
    assert [score.value for score in said] == [1.0, None, 2.0] and said[1].outcome == "error"


def test_what_a_reward_prints_goes_nowhere(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    workers = opened(site)
    assert [s.value for s in workers.score(answers("print", "stderr", "1"))] == [-1.0, -1.0, 1.0]
    workers.close()
    assert capfd.readouterr() == ("", "")


def test_a_reward_that_forks_is_heard_once_and_leaves_nothing_behind(workers: Workers, site: Path) -> None:
    assert [s.value for s in workers.score(answers("fork", "children", "1", "2", "3"))] == [-1.0, -1.0, 1.0, 2.0, 3.0]
    zygote = zygote_of(site)
    workers.close()
    assert wait_for(lambda: not group_of(zygote)), group_of(zygote)


def test_an_answer_that_cannot_be_sent_is_an_error(workers: Workers) -> None:
    bad = Answer("q", "1", "1", columns={"lambda": lambda: None})
    said = workers.score([bad, *answers("1")])
    assert said[0].outcome == "error" and "cannot be sent" in said[0].why and said[1].value == 1.0


def test_a_call_does_not_wait_for_another_and_closing_ends_both(site: Path) -> None:
    """One worker of two is held for longer than the test may take, until it is killed."""
    workers = opened(site, seconds=600)
    zygote = zygote_of(site)
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(workers.score, answers("sleep"))
        assert [score.value for score in workers.score(answers("1", "2", "3"))] == [1.0, 2.0, 3.0]
        assert not held.done()
        workers.close()
        (score,) = held.result(50)  # the worker itself would take 60 s
    assert score.outcome == "error" and score.why.startswith("its worker process died")
    assert wait_for(lambda: not group_of(zygote)), group_of(zygote)


def test_a_bare_function_serves(site: Path) -> None:
    workers = Workers(RewardChoice(type="bare"), LIMIT, count=1, place=RewardContext(site))
    said = workers.score([Answer("q", "four", "four", columns={"factor": 2.5}), Answer("q", "", "", columns={})])
    workers.close()
    assert said[0].value == 10.0 and said[1].outcome == "error"


def test_a_large_answer_arrives(workers: Workers) -> None:
    said = workers.score([Answer("q" * 20_000_000, "1", "1")])
    assert said[0].parts == {"size": 2e7}


def test_the_zygote_may_be_killed(workers: Workers, site: Path) -> None:
    workers.score(answers("1"))
    os.kill(zygote_of(site), signal.SIGKILL)
    said = workers.score(answers(*map(str, range(20))))
    assert all(score.outcome in ("right", "error") for score in said) and said[-1].value == 19.0


def test_many_deaths_leave_no_descriptors_and_no_processes(site: Path) -> None:
    before, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    workers = opened(site, seconds=0.05)
    workers.score(answers(*["exit", "1", "spin", "raise", "segfault"] * 20))
    zygote = zygote_of(site)
    workers.close()
    workers.close()
    assert set(os.listdir("/proc/self/fd")) == before and threading.active_count() == threads
    assert wait_for(lambda: not group_of(zygote)), group_of(zygote)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert str(zygote) not in children


def test_it_works_in_a_thread_that_ends_and_leaves_the_signals_alone(site: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGTERM)}
    kept: list[Workers] = []
    said: list[Score] = []

    def start() -> None:
        kept.append(opened(site))
        said.extend(kept[0].score(answers("1", "spin", "2")))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert [score.value for score in said] == [1.0, None, 2.0]
    assert kept[0].score(answers("3"))[0].value == 3.0
    kept[0].close()
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize(
    ("setting", "what"),
    [("refuses", "lacks a licence"), ("dies", "its process ended: no luck"), ("unknown", "unknown")],
)
def test_a_reward_that_cannot_be_opened_says_why(site: Path, setting: str, what: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(AlignError, match=what) as caught:
        opened(site, **{setting: True})
    assert "reward" in caught.value.problems[0].where
    assert set(os.listdir("/proc/self/fd")) == before


def test_nothing_outlives_a_trainer_that_is_killed(site: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(site)!r})
from pathlib import Path
from align.core.rewards.reward_base import Answer, RewardContext
from align.core.rewards.worker_pool import Workers
from align.schemas.run import RewardChoice
workers = Workers(RewardChoice(type="hostile"), 60.0, count=2, place=RewardContext(Path({str(site)!r})))
print(workers.score([Answer("q", "1", "1"), Answer("q", "children", "children")]) and "ready", flush=True)
workers.score([Answer("q", "ignore", "ignore"), Answer("q", "c loop", "c loop")])
"""
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None and trainer.stdout.readline() == "ready\n"
    zygote = zygote_of(site)
    assert len(group_of(zygote)) >= 3
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert wait_for(lambda: not group_of(zygote)), group_of(zygote)


def test_no_torch_in_the_machinery() -> None:
    check = "import align.core.rewards.worker_process, sys; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
