"""A judge that fails in every way over real HTTP: the run goes on, counts are right, the cap holds, no key leaks."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.rewards.reward_base import Answer, RewardContext
from align.plugins.rewards.ai_feedback.verdict_store import Cap, Ledger, Usage, VerdictStore
from align.schemas.errors import AlignError
from align.schemas.run import RewardChoice
from tests.plugins import judges
from tests.plugins.judges import Fault, Server, body, completion, serving, status
from tests.plugins.test_ai_feedback import judge, said, scores

FAULTS: dict[str, Fault] = {
    "429": status(429, Retry_After="0"),
    "429 of a date": status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "500": status(500),
    "503": status(503),
    "reset": judges.reset,
    "slow loris": judges.drip,
    "silence": judges.hang,
    "flood": judges.flood,
    "no JSON": body(b"<html>I am a login page</html>"),
    "nothing": body(b""),
    "invalid UTF-8": body(b'{"choices": "\xff\xfe"}'),
    "a list": body(b"[1, 2]"),
    "too deep": body(b"[" * 200_000),
    "no choices": body(b'{"choices": []}'),
    "null choice": body(b'{"choices": [null]}'),
    "no message": body(b'{"choices": [{"finish_reason": "stop"}]}'),
    "content a list": body(completion([{"type": "text"}])),
}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_costs_nothing_but_a_retry(server: Server, tmp_path: Path, name: str) -> None:
    server.faults = [FAULTS[name]]
    reward = judge(server, tmp_path, request_timeout=0.5)
    assert scores(reward, said("Paris")) == [9.0]
    counts = reward.counts()
    assert (len(server.seen), counts["requests"], counts["scored"]) == (2, 2, 1)
    if name[0] in "45":
        assert counts["prompt_tokens"] == 100, "a server that says no has not worked"
    else:
        assert counts["prompt_tokens"] > 100, "whether it has worked is unknown: counted as if it had"
    reward.close()


@pytest.mark.parametrize(("name", "outcome"), [("500", "error"), ("no JSON", "error"), ("silence", "timeout")])
def test_a_fault_that_stays_costs_the_answers_their_scores(
    server: Server, tmp_path: Path, name: str, outcome: str
) -> None:
    server.always = FAULTS[name]
    reward = judge(server, tmp_path, request_timeout=0.2, retries=2)
    found = reward.score(said("Paris", "Rome"))
    assert [(score.value, score.outcome) for score in found] == [(None, outcome)] * 2
    assert all(score.why for score in found)
    assert len(server.seen) == reward.counts()["requests"] == 2 * 3
    server.always = None
    assert scores(reward, said("Paris", "Rome")) == [9.0, 2.0], "a failure is not remembered"
    reward.close()


def test_faults_among_good_answers(server: Server, tmp_path: Path) -> None:
    server.faults = [fault for name, fault in FAULTS.items() if name not in ("slow loris", "silence", "flood")] * 3
    texts = [f"{'Paris' if number % 3 else 'Rome'} {number}" for number in range(40)]
    reward = judge(server, tmp_path, retries=12)
    assert scores(reward, said(*texts)) == [9.0 if number % 3 else 2.0 for number in range(40)]
    counts = reward.counts()
    assert (counts["scored"], counts["requests"]) == (40, len(server.seen)) == (40, 40 + 14 * 3)
    assert 1 < server.most <= 8
    reward.close()


def test_a_redirect_is_not_followed(server: Server, tmp_path: Path) -> None:
    with serving() as other:
        server.always = status(307, Location=f"{other.url}/chat/completions")
        reward = judge(server, tmp_path, key_file=str(_key(tmp_path)))
        (score,) = reward.score(said("Paris"))
        assert (score.outcome, len(server.seen), other.seen) == ("error", 1, [])
        assert "307" in score.why
        reward.close()


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_wrong_key_address_or_model_stops_at_once(server: Server, tmp_path: Path, code: int) -> None:
    server.always = status(code)
    reward = judge(server, tmp_path)
    with pytest.raises(AlignError, match=str(code)):
        reward.score(said(*map(str, range(100))))
    assert len(server.seen) <= 16
    reward.close()


def test_one_prompt_that_is_refused_is_one_answers_trouble(server: Server, tmp_path: Path) -> None:
    server.faults = [status(400)]
    reward = judge(server, tmp_path, concurrency=1)
    found = reward.score(said("Paris", "Rome"))
    assert [(s.value, s.outcome) for s in found] == [(None, "error"), (2.0, "scored")]
    reward.close()


# Several calls at once


def _soon(true: Callable[[], bool]) -> bool:
    """Wait until it is true; False where it is not within a minute."""
    return any(true() or time.sleep(0.01) for _ in range(6000))


def test_calls_at_once_share_the_concurrency_and_pay_once_for_equal_answers(server: Server, tmp_path: Path) -> None:
    """The server holds all requests until both calls have begun: the second waits for what the first has requested."""
    texts = [f"{'Paris' if number % 2 else 'Rome'} {number}" for number in range(6)]
    reward = judge(server, tmp_path, concurrency=3)
    let_go = threading.Event()

    def held(handler: judges.Handler) -> None:
        assert let_go.wait(60)
        judges.answers(handler)

    server.always = held
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(scores, reward, said(*some)) for some in (texts[:4], texts[2:])]
        # All are requested, by whichever call was first.
        requested = _soon(lambda: len(reward._pending) == len(texts) and server.under_way == 3)
        let_go.set()
        assert requested
        first, second = (call.result(60) for call in calls)
    assert first == [2.0, 9.0, 2.0, 9.0] == second
    assert len(server.seen) == reward.counts()["requests"] == reward.counts()["scored"] == 6
    assert server.most == 3 and reward.counts()["cached"] == 2 and not reward._pending
    reward.close()


def test_a_wrong_key_is_the_error_of_the_call_that_met_it(server: Server, tmp_path: Path) -> None:
    """The other calls, whose requests end with it, have no error of their own that could be taken for the cause."""
    reward = judge(server, tmp_path, concurrency=2)
    server.faults = [judges.hang, status(401)]
    with ThreadPoolExecutor(1) as threads:
        hangs = threads.submit(reward.score, said("Paris"))
        assert _soon(lambda: bool(server.seen))
        with pytest.raises(AlignError, match="401"):
            reward.score(said("Rome"))
        (score,) = hangs.result(60)
    assert score.outcome == "error" and score.why == "the run is ending"
    reward.close()


# Limits


def test_no_more_requests_a_minute_than_allowed(server: Server, tmp_path: Path) -> None:
    reward = judge(server, tmp_path, requests_per_minute=1200)
    reward.score(said(*map(str, range(9))))
    reward.close()
    assert server.times[-1] - server.times[0] >= 8 * 60 / 1200 - 0.04


def test_no_more_requests_at_once_than_allowed(server: Server, tmp_path: Path) -> None:
    server.delay = 0.02
    reward = judge(server, tmp_path, concurrency=3)
    reward.score(said(*map(str, range(12))))
    assert server.most <= 3
    reward.close()


@pytest.mark.parametrize(
    ("cap", "judged"),
    [
        ({"max_requests": 7}, 7),
        ({"max_total_tokens": 5000}, None),
        ({"max_cost": 0.01, "prompt_price": 1.0, "completion_price": 5.0}, None),
    ],
)
def test_the_cap_holds_whatever_happens(
    server: Server, tmp_path: Path, cap: dict[str, Any], judged: int | None
) -> None:
    server.usage = {"prompt_tokens": 800, "completion_tokens": 40}
    reward = judge(server, tmp_path, **cap)
    found = reward.score(said(*(f"Paris {number}" for number in range(30))))
    scored = [score for score in found if score.value == 9.0]
    capped = [score for score in found if (score.value, score.outcome) == (None, "abstained")]
    assert len(scored) + len(capped) == 30 and scored and capped and judged in (None, len(scored))
    assert all("the cap of" in score.why and "is reached" in score.why for score in capped)
    counts = reward.counts()
    assert counts["scored"] == len(scored) == len(server.seen) == counts["requests"]
    assert counts["capped"] == len(capped)
    assert counts["prompt_tokens"] + counts["completion_tokens"] == 840 * len(scored)
    assert 840 * len(scored) <= cap.get("max_total_tokens", math.inf)
    assert "max_cost" not in cap or (counts["cost"] == pytest.approx(0.001 * len(scored)) and counts["cost"] <= 0.01)
    reward.close()
    again = judge(server, tmp_path, **cap)  # a resumed run: what was spent stays spent
    assert len([s for s in again.score(said("Paris 100", "Paris 101", "Paris 102", "Paris 103")) if s.value]) <= 3
    assert again.counts()["requests"] == len(server.seen)
    again.close()


def test_the_cap_may_stop_the_run_and_what_was_judged_is_kept(server: Server, tmp_path: Path) -> None:
    answers = said(*(f"Paris {number}" for number in range(10)))
    reward = judge(server, tmp_path, max_requests=4, on_cap="stop")
    with pytest.raises(AlignError, match="the cap of 4 requests is reached"):
        reward.score(answers)
    reward.close()
    reward = judge(server, tmp_path, max_requests=10, on_cap="stop")
    assert scores(reward, answers) == [9.0] * 10 and len(server.seen) == 10
    reward.close()


def test_a_server_that_does_not_say_what_was_used_has_used_the_most(server: Server, tmp_path: Path) -> None:
    for number, usage in enumerate([None, {"prompt_tokens": -5, "completion_tokens": 1}, {"prompt_tokens": 10**30}, 7]):
        server.usage = usage
        reward = judge(server, tmp_path / str(number))
        assert scores(reward, said("Paris")) == [9.0]
        sent = json.dumps(server.seen[-1][2]["messages"])
        assert reward.counts()["completion_tokens"] == 512
        assert 0.9 * len(sent) < reward.counts()["prompt_tokens"] < 1.2 * len(sent)
        reward.close()


uses = st.tuples(st.integers(0, 5), st.integers(0, 900), st.integers(0, 900))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(uses, uses), max_size=20))
def test_the_ledger_never_reserves_past_its_cap(steps: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    ledger = Ledger(None, "me", Cap(requests=20, tokens=4000, cost=0.005, prompt_price=1.0, completion_price=2.0))
    total = Usage()
    for most, used in steps:
        reserved = Usage(*most)
        if ledger.reserve(reserved):
            actual = Usage(*(min(a, b) for a, b in zip(most, used, strict=True)))
            assert ledger.cap.holds(total + reserved)
            ledger.settle(reserved, actual)
            total = total + actual
        assert ledger.spent == total and ledger.cap.holds(total)
    ledger.close()


# Processes


_LABELLER = """
import sys
from pathlib import Path
from align.core.plugin_system.registry import registry
from align.core.rewards.reward_base import Answer, RewardContext
from align.schemas.run import Choice
url, place, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
settings = {"url": url, "model": "judge", "constitution": ["Be right."], "max_requests": 60, "concurrency": 4}
reward = registry.build("reward", Choice(type="ai_feedback", settings=settings))
reward.open(RewardContext(place / "cache", home=place / "home"))
answers = [Answer("What is the capital of France?", "", f"Paris {n}") for n in range(count)]
print([score.value for score in reward.score(answers)])
print(dict(reward.counts()))
"""


def test_a_kill_loses_no_verdict_and_no_expense(server: Server, tmp_path: Path) -> None:
    server.delay = 0.05
    command = [sys.executable, "-c", _LABELLER, server.url, str(tmp_path), "40"]
    for seen in (6, 15):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 30
        while len(server.seen) < seen and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    time.sleep(0.2)
    kept = len(server.seen)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values, counts = done.stdout.splitlines()
    assert values == str([9.0] * 40)
    told = eval(counts)
    asked = [body["messages"][1]["content"] for _, _, body in server.seen]
    assert kept >= 15 and len(set(asked)) == 40 and len(asked) <= 40 + 2 * 4, "only what was under way is asked again"
    assert len(asked) <= told["requests"] <= 60 and told["cached"] == 40 - told["scored"]


def test_ranks_share_memory_and_ledger(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LABELLER, server.url, str(tmp_path), "70"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(server.seen) == 60 == max(eval(lines[1])["requests"] for lines in printed)
    assert all(9.0 in eval(lines[0]) and None in eval(lines[0]) for lines in printed)


@pytest.mark.parametrize(
    ("table", "fix"),
    [
        ("verdicts (key TEXT PRIMARY KEY, mark REAL)", "remove the file: the judge is asked for its verdicts again"),
        ("spent (owner TEXT PRIMARY KEY, requests INTEGER)", "lower the caps by what was spent so far"),
    ],
)
def test_a_file_of_another_version_is_reported_with_its_fix(tmp_path: Path, table: str, fix: str) -> None:
    """SQLite's own error for it ("table spent has 2 columns but 5 values were supplied") names no fix."""
    path = tmp_path / "ai_feedback.sqlite"
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE {table} WITHOUT ROWID")
    with pytest.raises(AlignError, match="was written by another version of align") as error:
        VerdictStore(path) if table.startswith("verdicts") else Ledger(path, "judge", Cap())
    (problem,) = error.value.problems
    assert problem.where == str(path) and fix in problem.fix


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "ai_feedback.sqlite").write_bytes(b"no database at all, but long enough to be read as one" * 20)
    with pytest.raises(AlignError, match="cannot be used"):
        VerdictStore(tmp_path / "ai_feedback.sqlite")


# Keys


CANARY = "sk-canary-8d1f6e02"


def _key(place: Path) -> Path:
    path = place.parent / f"{place.name}.key"
    path.write_text(CANARY + "\n")
    return path


@pytest.mark.parametrize("source", ["key_file", "key_env"])
def test_a_key_is_sent_and_nowhere_else(
    server: Server, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    monkeypatch.setenv("JUDGE_KEY", CANARY)
    chosen = {source: str(_key(place)) if source == "key_file" else "JUDGE_KEY"}
    reward = judge(server, place, retries=0, **chosen)

    def quoting(code: int) -> Fault:
        return lambda handler: handler.reply(code, f'{{"error": "bad key {CANARY}"}}'.encode())

    told = []
    server.faults = [quoting(500), quoting(400), body(CANARY.encode())]
    for text in ("a", "b", "c", "Paris"):
        told.append(str(reward.score(said(text))))
    server.faults = [quoting(401)]
    with pytest.raises(AlignError) as error:
        reward.score(said("d"))
    assert [headers["Authorization"] for _, headers, _ in server.seen] == [f"Bearer {CANARY}"] * 5
    told += [str(error.value), repr(error.value), repr(vars(reward)), str(reward.counts()), *capfd.readouterr()]
    reward.close()
    written = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
    assert len(written) >= 2
    assert not any(CANARY in text for text in told) and not any(CANARY.encode() in data for data in written)


def test_through_the_scorer(server: Server, tmp_path: Path) -> None:
    settings = {"url": server.url, "model": "judge", "constitution": ["Be right."], "mode": "pairwise"}
    choice = RewardChoice(type="ai_feedback", weight=2.0, settings=settings)
    answers = [Answer("p", text, text, group=group) for group in (0, 1) for text in ("Paris", "Rome")]
    from align.core.rewards.scorer import Scorer

    with Scorer([choice], RewardContext(tmp_path)) as scorer:
        assert [each.reward for each in scorer.score(answers)] == [2.0, 0.0, 2.0, 0.0]
    assert not re.search("sqlite", " ".join(os.listdir(tmp_path)).replace("ai_feedback.sqlite", ""))
