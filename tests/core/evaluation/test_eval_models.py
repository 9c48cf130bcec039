"""What answers queries: a generator gives what sampling and a forward pass give, a server what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import align
from align import AlignError
from align.core.inference.eval_models import EvalModel, ModelChoice, cut, open_model
from align.evals import Generate, LogLikelihood
from align.settings import Sampling


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Iterator[EvalModel]:
    """Open the tiny model."""
    with open_model(ModelChoice(str(tiny_model_dir))) as opened:
        yield opened


GREEDY = Sampling(temperature=0, max_completion_length=8)


def test_greedy_completions_are_those_of_align_sample(model: EvalModel, tiny_model_dir: Path) -> None:
    prompts = ["one two", "three", "a b c d"]
    (expected) = align.sample(tiny_model_dir, prompts, chat=False, temperature=0, max_completion_length=8)
    replies = model.generate([(Generate(prompt, GREEDY), seed) for seed, prompt in enumerate(prompts)])
    assert [reply.text for reply in replies] == [each.text for each in expected]
    assert [reply.tokens for reply in replies] == [len(each.sample.tokens) for each in expected]


def test_settings_and_order_of_other_queries_change_nothing(model: EvalModel) -> None:
    drawn = Sampling(temperature=1, max_completion_length=6)
    queries = [(Generate(f"prompt {n}", drawn if n % 2 else GREEDY), n) for n in range(6)]
    together = model.generate(queries)
    assert together == [model.generate([query])[0] for query in queries]
    assert together == model.generate(queries[::-1])[::-1]


def test_likelihoods_are_those_of_a_forward_pass(model: EvalModel, tiny_model_dir: Path) -> None:
    pairs = [("one two", " three"), ("a ", "b c"), ("x", " y z")]
    network = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    for (context, continuation), reply in zip(
        pairs, model.loglikelihood([LogLikelihood(*pair) for pair in pairs]), strict=True
    ):
        start = len(tokenizer(context.rstrip())["input_ids"])
        ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
        with torch.no_grad():
            logp = network(ids).logits[0].log_softmax(-1)
        expected = sum(float(logp[place - 1, ids[0, place]]) for place in range(start, ids.shape[1]))
        assert reply.tokens == ids.shape[1] - start
        assert reply.logp == pytest.approx(expected, abs=1e-4)


def test_a_shorter_prompt_is_taken_where_the_longer_leaves_no_room(tiny_model_dir: Path) -> None:
    with open_model(ModelChoice(str(tiny_model_dir), context=24)) as model:
        long, short = "word " * 40, "word"
        fitted, plain = model.generate([(Generate(long, GREEDY, shorter=[short]), 3), (Generate(short, GREEDY), 3)])
        assert fitted == plain
        with pytest.raises(AlignError, match="tokens, and the model's context 24"):
            model.generate([(Generate(long, GREEDY), 3)])
        with pytest.raises(AlignError, match="tokens, and the model's context 24"):
            model.loglikelihood([LogLikelihood(long, " end")])


def test_the_longest_completion_shrinks_to_what_the_context_leaves(tiny_model_dir: Path) -> None:
    with open_model(ModelChoice(str(tiny_model_dir), context=24)) as model:
        much = Sampling(temperature=1, max_completion_length=1000)
        prompt = "a b c d e"
        (reply,) = model.generate([(Generate(prompt, much), 1)])
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
        assert 0 < reply.tokens <= 24 - len(tokenizer(prompt)["input_ids"])


def test_text_ends_before_the_first_stop_string() -> None:
    assert cut("answer: 4\nQ: next. END", ["END", "\nQ:"]) == "answer: 4"
    assert cut("nothing", ["\n"]) == "nothing"


def test_identity_follows_weights_and_template_and_no_path(tiny_model_dir: Path, tmp_path: Path) -> None:
    def identity(directory: Path) -> Any:
        with open_model(ModelChoice(str(directory))) as opened:
            return opened.identity

    copy = tmp_path / "copy"
    network = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    for directory in (copy, tmp_path / "other", tmp_path / "templated"):
        network.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        with torch.no_grad():
            network.lm_head.weight[0, 0] += 1
        tokenizer.chat_template = "{{ messages }}"
    one, other, templated = identity(copy), identity(tmp_path / "other"), identity(tmp_path / "templated")
    assert one["weights"] != other["weights"]
    assert other["chat_template"] == templated["chat_template"] != one["chat_template"]


class Server(ThreadingHTTPServer):
    """Records requests, and answers them with their own prompt."""

    requests: list[tuple[str, dict[str, Any]]]


@pytest.fixture
def server() -> Iterator[Server]:
    """Serve one model on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        """Answers both APIs."""

        def do_GET(self) -> None:
            """List one model."""
            self._send({"data": [{"id": "only"}]})

        def do_POST(self) -> None:
            """Answer with the prompt."""
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert isinstance(self.server, Server)
            self.server.requests.append((self.path, body))
            usage = {"completion_tokens": 7}
            if self.path.endswith("/chat/completions"):
                message = {"content": f"chat {body['messages'][-1]['content']}"}
                self._send({"choices": [{"message": message, "finish_reason": "length"}], "usage": usage})
            else:
                self._send({"choices": [{"text": f"text {body['prompt']}", "finish_reason": "stop"}], "usage": usage})

        def _send(self, content: dict[str, Any]) -> None:
            raw = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    made = Server(("127.0.0.1", 0), Handler)
    made.requests = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_server_is_asked_over_the_api_that_fits_and_its_only_model_is_found(server: Server) -> None:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    with open_model(ModelChoice(url=url)) as model:
        assert model.identity == {"url": url, "model": "only"}
        chat = Generate([{"role": "user", "content": "hi"}], Sampling(temperature=0.5, stop=["!"]))
        replies = model.generate([(Generate("once", GREEDY), 2**40 + 5), (chat, 1)])
        assert [(r.text, r.tokens, r.finish) for r in replies] == [
            ("text once", 7, "stop"),
            ("chat hi", 7, "length"),
        ]
        sent = dict(server.requests)
        assert sent["/v1/completions"]["seed"] == 5 + 2**40 % 2**31
        assert sent["/v1/completions"]["max_tokens"] == 8
        assert sent["/v1/chat/completions"]["stop"] == ["!"]
        with pytest.raises(AlignError, match="cannot score given text"):
            model.loglikelihood([LogLikelihood("a", "b")])
