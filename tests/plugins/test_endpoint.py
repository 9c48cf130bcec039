"""The endpoint generator against a real HTTP server on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.core.generation.generator_base import Interrupt, ModelHandle, Request
from align.core.models.load_and_export import load_tokenizer
from align.plugins.generators.endpoint import Endpoint
from align.schemas.errors import AlignError
from align.schemas.run import Model, Sampling
from tests.core.servers import Reply, Seen, Server, serving

SAMPLING = Sampling(max_completion_length=8)


def completion(text: str, logp: list[float] | None = None, finish: str = "stop") -> Reply:
    told = None if logp is None else {"tokens": ["?"] * len(logp), "token_logprobs": logp}
    return Reply({"choices": [{"text": text, "finish_reason": finish, "logprobs": told}]})


def chat(text: str, finish: str = "stop") -> Reply:
    return Reply({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]})


@contextmanager
def asking(
    tiny_model_dir: Path, answer: Callable[[Seen], Reply], **settings: Any
) -> Iterator[tuple[Endpoint, Server, Any]]:
    model = Model(path=str(tiny_model_dir))
    tokenizer = load_tokenizer(model)
    with serving(answer) as server:
        endpoint = Endpoint(Endpoint.Config(url=server.url + "/v1", model="judge", **settings))
        endpoint.open(ModelHandle(tiny_model_dir, model, tokenizer, (3,), 64))
        try:
            yield endpoint, server, tokenizer
        finally:
            endpoint.close()
            endpoint.close()


def request_of(tokenizer: Any, text: str, *seeds: int) -> Request:
    return Request(np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32), seeds)


def test_a_prompt_is_asked_as_text_and_its_answer_comes_in_our_tokens(tiny_model_dir: Path) -> None:
    with asking(tiny_model_dir, lambda _seen: completion("The sea", [-0.5, -1.0])) as (endpoint, server, tokenizer):
        text = "<|im_start|>user\nWhat?<|im_end|>\n"
        ours = tokenizer("The sea", add_special_tokens=False)["input_ids"]
        sampling = Sampling(max_completion_length=8, temperature=0.5, top_p=0.9, stop=["\n"])
        ((sample,),) = endpoint.generate([request_of(tokenizer, text, 2**62 + 5)], sampling)
        assert (sample.tokens.tolist(), sample.finish) == (ours, "stop")
        assert sample.logp.tolist() == ([-0.5, -1.0] if len(ours) == 2 else [])
        (seen,) = server.seen
        assert seen.path == "/v1/completions" and seen.content == {
            "model": "judge",
            "prompt": text,
            "max_tokens": 8,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 5,
            "n": 1,
            "logprobs": 0,
            "stop": ["\n"],
        }


def test_chat_sends_a_message_without_special_tokens(tiny_model_dir: Path) -> None:
    settings = {"api": "chat", "extra": {"top_k": 3}}
    with asking(tiny_model_dir, lambda _seen: chat("yes", "length"), **settings) as (endpoint, server, tokenizer):
        ((sample,),) = endpoint.generate([request_of(tokenizer, "<|bos|>Is it?", 1)], SAMPLING)
        assert tokenizer.decode(sample.tokens.tolist()) == "yes" and sample.finish == "length"
        assert len(sample.logp) == 0  # the server did not say, and no number is made up
        (seen,) = server.seen
        assert seen.path == "/v1/chat/completions" and seen.content["top_k"] == 3
        assert seen.content["messages"] == [{"role": "user", "content": "Is it?"}] and "prompt" not in seen.content


def test_chat_refuses_messages_that_a_template_made_text_of(tiny_model_dir: Path) -> None:
    with asking(tiny_model_dir, lambda _seen: chat("yes"), api="chat") as (endpoint, server, tokenizer):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for prompt in (text, "<|bos|>" + text):
            with pytest.raises(AlignError, match="would take them for one user's message"):
                endpoint.generate([request_of(tokenizer, prompt, 1)], SAMPLING)
        assert server.seen == []


def test_answers_are_in_the_order_of_their_seeds_whatever_order_they_come_in(tiny_model_dir: Path) -> None:
    def slow_first(seen: Seen) -> Reply:
        reply = completion(f"answer {seen.content['seed']}")
        reply.hang = 0.3 if seen.content["seed"] == 0 else 0.0
        return reply

    told = []
    with asking(tiny_model_dir, slow_first, concurrency=3) as (endpoint, server, tokenizer):
        requests = [request_of(tokenizer, "a", 0, 1, 2), request_of(tokenizer, "b", 3, 4)]
        groups = endpoint.generate(requests, SAMPLING, on_token=lambda *on_token: told.append(on_token))
        said = [[tokenizer.decode(sample.tokens.tolist()) for sample in group] for group in groups]
        assert said == [["answer 0", "answer 1", "answer 2"], ["answer 3", "answer 4"]]
        assert [on_token[2] for on_token in told if on_token[:2] == (1, 1)] == groups[1][1].tokens.tolist()
        assert len(server.seen) == 5


def test_an_empty_answer_is_the_end_token(tiny_model_dir: Path) -> None:
    with asking(tiny_model_dir, lambda _seen: completion("")) as (endpoint, _, tokenizer):
        ((sample,),) = endpoint.generate([request_of(tokenizer, "a", 0)], SAMPLING)
        assert sample.tokens.tolist() == [tokenizer.eos_token_id]


def test_a_busy_server_is_asked_again(tiny_model_dir: Path) -> None:
    replies = [Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0"}), Reply(b"garbage")]
    with asking(tiny_model_dir, lambda _seen: replies.pop(0) if replies else completion("ok")) as (endpoint, server, t):
        ((sample,),) = endpoint.generate([request_of(t, "a", 0)], SAMPLING)
        assert t.decode(sample.tokens.tolist()) == "ok" and len(server.seen) == 3


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"error": {"message": "boom"}}, 500), "answered 500: boom"),
        (Reply({"error": {"message": "no such model"}}, 404), "answered 404: no such model"),
        (Reply(hang=60), r"no answer within 0\.5 s"),
        (Reply({"choices": []}), "unknown form"),
        (completion("x", finish="content_filter"), "'content_filter'"),
        (Reply({"choices": [{"text": None, "finish_reason": "stop"}]}), "ended an answer"),
    ],
    ids=["500", "404", "hang", "empty", "filtered", "null"],
)
def test_a_server_that_does_not_answer_is_said_so(tiny_model_dir: Path, reply: Reply, said: str) -> None:
    began = time.monotonic()
    with (
        asking(tiny_model_dir, lambda _seen: reply, timeout=0.5, retries=1) as (endpoint, _, tokenizer),
        pytest.raises(AlignError, match=said),
    ):
        endpoint.generate([request_of(tokenizer, "a", 0, 1)], SAMPLING)
    assert time.monotonic() - began < 30


def test_it_can_be_interrupted(tiny_model_dir: Path) -> None:
    with (
        asking(tiny_model_dir, lambda _seen: Reply(hang=60)) as (endpoint, _, tokenizer),
        pytest.raises(Interrupt),
    ):
        endpoint.generate([request_of(tokenizer, "a", 0)], SAMPLING, stop=lambda: True)


def test_what_the_api_lacks_is_refused(tiny_model_dir: Path) -> None:
    with asking(tiny_model_dir, lambda _seen: completion("x")) as (endpoint, server, tokenizer):
        for odd in ({"top_k": 3}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"stop_token_ids": [3]}):
            with pytest.raises(AlignError, match=next(iter(odd))):
                endpoint.generate([request_of(tokenizer, "a", 0)], Sampling(**odd))
        with pytest.raises(AlignError, match="cannot score"):
            endpoint.logp([])
        assert server.seen == [] and not endpoint.trainable


def test_the_key_goes_to_the_server_and_nowhere_else(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-canary-2")
    reply = Reply({"error": {"message": "bad key sk-canary-2"}}, 401)
    with asking(tiny_model_dir, lambda _seen: reply, key_env="JUDGE_KEY") as (endpoint, server, tokenizer):
        with pytest.raises(AlignError) as error:
            endpoint.generate([request_of(tokenizer, "a", 0)], SAMPLING)
        assert server.seen[0].headers["Authorization"] == "Bearer sk-canary-2"
        assert "canary" not in str(error.value) + endpoint.config.model_dump_json() + json.dumps(server.seen[0].content)
