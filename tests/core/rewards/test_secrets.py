"""No secret of settings, environment, headers or servers is printed or written with a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.core.inference.json_client import endpoint_client
from align.core.report.read import read_run
from align.core.rewards.reward_base import Answer, RewardContext
from align.core.rewards.scorer import RunningReward, decisive
from align.core.training.launch import train
from align.core.util.http import Client, Refused, checked_url, shown_url
from align.schemas.errors import AlignError
from align.schemas.run import RewardChoice, Run
from align.schemas.text import concealed, is_secret, redacted, secrets_of, shown_argument
from tests.core.servers import Reply, serving

KEY = "corr3ct-horse-battery"
FORMS = [
    "sk-" + "a1B2" * 8,
    "hf_" + "Ab1" * 10,
    "ghp_" + "Zz9" * 10,
    "AKIA" + "Q7" * 8,
    "eyJ" + "hbGciOi" * 3 + ".eyJ" + "zdWIi" * 4 + ".c2ln",
]  # put together here, so that no scanner takes this file for a leak


@pytest.mark.parametrize(
    "name", ["api_key", "apiKey", "password", "HF_TOKEN", "client_secret", "Authorization", "x-api-key"]
)
def test_names_that_say_so(name: str) -> None:
    assert is_secret(name)
    assert list(secrets_of({"a": [{name: KEY}]})) == [KEY]
    assert KEY not in json.dumps(concealed({"a": [{name: {"deeper": [KEY]}}]}))
    assert KEY not in shown_argument(f"rollout.rewards.0.settings.{name}={KEY}")


@pytest.mark.parametrize(
    "name",
    [
        "eos_token",
        "pad_token",
        "stop_tokens",
        "max_tokens",
        "max_completion_length",
        "stop_token_ids",
        "key",
        "monkey",
        "keys",
        "tokens",
    ],
)
def test_names_that_do_not(name: str) -> None:
    assert not is_secret(name) and concealed({name: "plain words"}) == {name: "plain words"}
    assert shown_argument(f"a.{name}=5") == f"a.{name}=5"


@pytest.mark.parametrize("secret", FORMS)
def test_forms_that_say_so(secret: str) -> None:
    for hidden in (
        redacted(f"bad key {secret}!"),
        json.dumps(concealed({"key": secret})),
        shown_argument(f"key={secret}"),
    ):
        assert secret not in hidden and "hidden" in hidden


def test_ordinary_words_stay() -> None:
    text = "The task-oriented sk-learn run hf_x failed at https://example.org/v1: 'eyJ' Bearer"
    assert redacted(text) == text and concealed({"a": text, "b": [1, None, True]}) == {"a": text, "b": [1, None, True]}


def test_two_secrets_are_told_apart_and_an_address_loses_its_user() -> None:
    assert concealed({"password": KEY}) != concealed({"password": KEY + "2"})
    assert concealed({"url": f"https://me:{KEY}@h/v1"})["url"].endswith("@h/v1")


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (f"https://me:{KEY}@other.example/v1?token={KEY}#{KEY}", "https://other.example/v1?…"),
        (f"/login?next=/v1&session={KEY}", "/login?…"),
        (f"https://other.example/session/{'a1' * 20}/go", "https://other.example/session/…/go"),
        ("https://other.example:8443/v1/chat/completions", "https://other.example:8443/v1/chat/completions"),
        (f"https://other.example/{KEY}", "https://other.example/…"),
    ],
)  # fmt: skip
def test_a_redirects_target(location: str, shown: str) -> None:
    with (
        serving(lambda seen: Reply(status=302, headers={"Location": location})) as server,
        Client(server.url, key=KEY, retries=0) as client,
        pytest.raises(Refused) as caught,
    ):
        client.get("/x")
    assert f"go to {shown}" in str(caught.value) and KEY not in str(caught.value)


def test_an_address_in_a_message() -> None:
    with pytest.raises(AlignError) as caught:
        checked_url(f"https://h/v1?api_key={KEY}")
    assert KEY not in str(caught.value) and shown_url("https://h/v1") == "https://h/v1"


def test_a_reply_in_an_unknown_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE", KEY)
    with serving(lambda seen: Reply({"you sent": f"Bearer {KEY}"})) as server, pytest.raises(AlignError) as caught:
        endpoint_client(server.url, "m", key_env="MY_JUDGE")("p", {})
    assert "unknown form" in str(caught.value) and KEY not in str(caught.value)


REWARD = """
import os

def scored(completions, password, api):
    assert password and api
    return [0.5 + len(c) / 1e6 for c in completions]

def fails(completions, password, api):
    raise RuntimeError(f"cannot log in with {password} and {api['token']} and {os.environ['MY_API_KEY']}")

def tells(completions, password, api, log_extra):
    log_extra("told", [password for _ in completions])
    return [None for _ in completions]
"""


def choice(function: str, file: Path, **more: Any) -> RewardChoice:
    settings = {"password": KEY, "api": {"token": FORMS[0]}}
    return RewardChoice(type="python", settings={"file": str(file), "function": function, "settings": settings}, **more)


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_reward_that_fails_is_named_and_keeps_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    """A traceback is reported with file, function and line, without settings and environment."""
    monkeypatch.setenv("MY_API_KEY", "env1ronment")
    (tmp_path / "mine.py").write_text(REWARD)
    opened = RunningReward(choice("fails", tmp_path / "mine.py", timeout=timeout), RewardContext(tmp_path))
    try:
        if timeout is None:
            with pytest.raises(AlignError) as caught:
                opened.score([Answer("p", "c", "c")])
            told = str(caught.value)
            assert "mine.py:fails" in told
        else:
            (score,) = opened.score([Answer("p", "c", "c")])
            told = score.why
    finally:
        opened.close()
    assert "cannot log in with [hidden] and [hidden] and [hidden] (mine.py, line 9)" in told
    with_extra = RunningReward(choice("tells", tmp_path / "mine.py"), RewardContext(tmp_path))
    assert [score.why for score in with_extra.score([Answer("p", "c", "c")])] == ["told: [hidden]"]


def test_nothing_beside_a_run_holds_it(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the run file itself, which the user wrote; and a change of it is still seen."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["align", "train", "run.yaml", f"rollout.rewards.0.settings.password={KEY}"])
    (tmp_path / "mine.py").write_text(REWARD)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the sea"}\n')
    chosen = choice("scored", tmp_path / "mine.py")
    stage = {
        "name": "only",
        "model": {"path": str(tiny_model_dir)},
        "data": {"train": str(tmp_path / "prompts.jsonl"), "dataset_num_proc": 1},
        "algorithm": {"type": "grpo", "num_generations": 2},
        "train": {"batch_size": 2, "max_steps": 1},
        "rollout": {
            "rewards": [{"type": "python", "settings": chosen.settings}],
            "sampling": {"max_completion_length": 4},
        },
    }
    run = Run.model_validate({"output": str(tmp_path / "run"), "stages": [stage]})
    train(run, progress=False)
    holding = [
        path.name
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and (KEY.encode() in (raw := path.read_bytes()) or FORMS[0].encode() in raw)
    ]
    assert holding == ["run.yaml"]
    assert KEY not in repr(read_run(tmp_path / "run")) and FORMS[0] not in repr(read_run(tmp_path / "run"))
    assert decisive(chosen) != decisive(choice("scored", tmp_path / "mine.py", weight=2.0))
