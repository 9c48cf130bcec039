"""A server that speaks the few routes of vLLM which the client uses; the standard library only, so it starts at once.

What it answers follows from its weights (one number), the prompt and the seed. ``POST /behave`` has it misbehave.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def drawn(weights: float, prompt: list[int], seed: int) -> list[int]:
    """The completion."""
    digest = hashlib.sha256(repr((weights, list(prompt), seed)).encode()).digest()
    return [int(byte) for byte in digest[:4]]


def logp_of(weights: float, token: int) -> float:
    return -(token % 7 + 1) / 8 - weights / 100


class Fake(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.label, self.weights = "default", 0.0
        self.asked = self.answered = 0
        self.behaviour: dict[str, Any] = {}
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # connections that the client has closed

    def generate(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            self.asked += 1
            number = self.asked
        if number > self.behaviour.get("die_after", 2**30):
            os.kill(os.getpid(), signal.SIGKILL)
        if number > self.behaviour.get("hang_after", 2**30):
            time.sleep(600)
        time.sleep(self.behaviour.get("seconds", 0.01))
        if self.behaviour.get("fails"):
            raise ValueError("it fails")
        label, params, prompt = self.label, asked["sampling_params"], asked["token_ids"]
        tokens = drawn(self.weights, prompt, params.get("seed", 0))
        reply: dict[str, Any] = {
            "choices": [
                {
                    "token_ids": tokens,
                    "finish_reason": "stop",
                    "weight_versions": [{"version": label}],
                    "logprobs": {"content": [{"logprob": logp_of(self.weights, token)} for token in tokens]},
                }
            ]
        }
        if "prompt_logprobs" in params:
            reply["prompt_logprobs"] = [{str(token): {"logprob": logp_of(self.weights, token)}} for token in prompt]
        with self.lock:
            self.answered += 1
        return reply

    def load(self, directory: str, manifest: str) -> None:
        (name,) = json.loads(manifest)
        content = (Path(directory) / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == json.loads(manifest)[name]
        if not self.behaviour.get("keeps_weights"):
            (self.weights,) = struct.unpack("<f", content[-4:])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Fake

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        known = {"/health": {}, "/weight_info": {"weight_version": self.server.label}, "/seen": vars(self.server)}
        found = known[self.path]
        self._send(200, {name: found[name] for name in found if isinstance(found[name], int | float | str)})

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
        fake = self.server
        try:
            reply: dict[str, Any] = {}
            if self.path == "/inference/v1/generate":
                reply = fake.generate(content)
            elif self.path == "/update_weight_version":
                fake.label = content["new_version"]
            elif self.path == "/collective_rpc":
                fake.load(*content["args"])
            elif self.path == "/reset_prefix_cache":
                reply = {"success": True}
            elif self.path == "/behave":
                fake.behaviour = content
        except ValueError as error:
            self._send(500, {"error": str(error)})
            return
        self._send(200, reply)

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve at ``--port``. FAKE_VLLM: JSON, the behaviour of all; FAKE_VLLM_FIRST: of the one that starts first."""
    fake = Fake(int(sys.argv[sys.argv.index("--port") + 1]))
    fake.behaviour = json.loads(os.environ.get("FAKE_VLLM", "{}"))
    fresh = Path(os.environ["FAKE_VLLM_SEEN"])
    with open(fresh, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    if len(fresh.read_text(encoding="utf-8").split()) == 1:
        fake.behaviour |= json.loads(os.environ.get("FAKE_VLLM_FIRST", "{}"))
    if fake.behaviour.get("fails_to_start"):
        print("ValueError: it does not start", flush=True)
        sys.exit(1)
    fake.serve_forever()


if __name__ == "__main__":
    main()
