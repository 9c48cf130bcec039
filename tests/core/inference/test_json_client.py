from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.core.inference import json_client
from align.core.inference.json_client import RecordedClient, endpoint_client, local_client
from align.schemas.errors import AlignError
from tests.core.servers import Reply, Seen, serving
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

SCHEMA = {"type": "object", "properties": {"facts": {"type": "array"}}}


def said(text: Any) -> Reply:
    return Reply({"choices": [{"message": {"role": "assistant", "content": text}}]})


def only(*keys: str) -> Callable[[Seen], Reply]:
    """A server that answers what asks for structure with just these keys, and refuses the rest as vLLM does."""

    def answer(seen: Seen) -> Reply:
        asked = {key for key in ("response_format", "structured_outputs") if key in seen.content}
        kind = seen.content.get("response_format", {}).get("type")
        name = kind or next(iter(asked), "plain")
        return said(name) if name in keys else Reply({"error": {"message": f"{name}?"}}, status=400)

    return answer


@pytest.mark.parametrize(
    ("takes", "tries"),
    [("json_schema", 1), ("structured_outputs", 2), ("json_object", 3), ("plain", 4)],
)
def test_structure_is_asked_for_in_the_words_that_the_server_knows(takes: str, tries: int) -> None:
    with serving(only(takes)) as server:
        assert endpoint_client(f"{server.url}/v1", "m")("what?", SCHEMA) == takes
    assert len(server.seen) == tries
    last = server.seen[-1]
    assert last.path == "/v1/chat/completions"
    assert last.content["messages"] == [{"role": "user", "content": "what?"}]
    assert (last.content["model"], last.content["temperature"], last.content["seed"]) == ("m", 0, 0)
    first = server.seen[0].content["response_format"]["json_schema"]
    assert (first["schema"], first["strict"]) == (SCHEMA, True)
    if tries > 1:
        assert server.seen[1].content["structured_outputs"] == {"json": SCHEMA}


def test_a_model_that_refuses_to_be_greedy_is_asked_without() -> None:
    def answer(seen: Seen) -> Reply:
        greedy = {"temperature", "seed", "max_tokens"} & seen.content.keys()
        return Reply({"error": "max_tokens is not supported"}, status=400) if greedy else said("{}")

    with serving(answer) as server:
        assert endpoint_client(server.url, "m")("what?", SCHEMA) == "{}"
    assert server.seen[-1].content.keys() == {"model", "messages", "response_format"}


def test_a_server_that_refuses_everything_is_quoted() -> None:
    with serving(only()) as server, pytest.raises(AlignError, match=r"answered 400: plain\?"):
        endpoint_client(server.url, "m")("what?", SCHEMA)
    with serving(lambda seen: Reply({"error": "no such key"}, status=401)) as server:
        with pytest.raises(AlignError, match="check the key"):
            endpoint_client(server.url, "m")("what?", SCHEMA)
        assert len(server.seen) == 1  # another structure would not help


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": [{"message": {"content": None}}]}, {"choices": 3}])
def test_an_unknown_answer_is_told(reply: dict[str, Any]) -> None:
    with serving(lambda seen: Reply(reply)) as server, pytest.raises(AlignError, match="unknown form"):
        endpoint_client(server.url, "m")("what?", SCHEMA)


def test_nothing_leaves_this_machine_unless_it_may() -> None:
    with pytest.raises(AlignError, match="would leave this machine") as stopped:
        endpoint_client("https://models.invalid/v1", "m")
    assert "--allow-network" in str(stopped.value)
    endpoint_client("https://models.invalid/v1", "m", allow_network=True)  # asks nothing yet
    with pytest.raises(AlignError, match="unencrypted"):
        endpoint_client("http://models.invalid/v1", "m", allow_network=True)


def test_the_key_goes_with_the_request_and_into_no_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-word")
    with serving(lambda seen: said("{}")) as server:
        RecordedClient(endpoint_client(server.url, "m", key_env="SOME_KEY"), tmp_path, "m")("what?", SCHEMA)
    assert server.seen[0].headers["Authorization"] == "Bearer secret-word"
    assert all("secret-word" not in file.read_text() for file in tmp_path.iterdir())
    with pytest.raises(AlignError, match="NO_KEY"):
        endpoint_client(server.url, "m", key_env="NO_KEY")


def never(prompt: str, schema: dict[str, Any]) -> str:
    raise AssertionError("asked")


def test_what_was_recorded_is_replayed_as_it_was(tmp_path: Path) -> None:
    reply = '{"facts": [], "é": "\\u0000 \ud800"}'
    first = RecordedClient(lambda prompt, schema: reply, tmp_path, "m")("what?", SCHEMA)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    again = RecordedClient(never, tmp_path, "m", offline=True)
    assert again("what?", SCHEMA) == first == reply
    assert file.read_bytes() == before
    assert json.loads(before)["prompt"] == "what?"


@pytest.mark.parametrize(
    ("prompt", "schema", "model"), [("who?", SCHEMA, "m"), ("what?", {}, "m"), ("what?", SCHEMA, "n")]
)
def test_another_question_is_not_answered_from_the_record(
    tmp_path: Path, prompt: str, schema: dict[str, Any], model: str
) -> None:
    RecordedClient(lambda prompt, schema: "one", tmp_path, "m")("what?", SCHEMA)
    with pytest.raises(AlignError, match="--offline forbids") as stopped:
        RecordedClient(never, tmp_path, model, offline=True)(prompt, schema)
    assert str(tmp_path) in str(stopped.value)
    assert RecordedClient(lambda prompt, schema: "two", tmp_path, model)(prompt, schema) == "two"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"reply": 3}', b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_told(tmp_path: Path, content: bytes) -> None:
    recorded = RecordedClient(lambda prompt, schema: "one", tmp_path, "m")
    recorded("what?", SCHEMA)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with pytest.raises(AlignError, match="no recorded reply") as stopped:
        recorded("what?", SCHEMA)
    assert file.name in str(stopped.value)


def test_a_model_of_ones_own_is_asked_greedily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_client, "MAX_TOKENS", 8)
    ask = local_client(str(save_tiny(tmp_path)))
    assert ask("What is the answer?", SCHEMA) == ask("What is the answer?", SCHEMA)
    assert ask("/", SCHEMA)  # a prompt is no path


def test_a_prompt_beyond_the_context_is_told_with_a_fix(tmp_path: Path) -> None:
    tiny_model(0, max_position_embeddings=64).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(AlignError, match="longer than its context can hold") as stopped:
        local_client(str(tmp_path))("word " * 100, SCHEMA)
    assert "a longer context" in str(stopped.value)
    with pytest.raises(AlignError):
        local_client(str(tmp_path / "nowhere"))("what?", SCHEMA)
