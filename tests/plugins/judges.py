"""A judge behind a real local HTTP server: it keeps to the rules, believes what stands outside the fences, and fails
on demand."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FENCE = re.compile(r"<<<([A-Z]+(?: [AB])?) ([0-9a-f]{12})>>>\n(.*?)\n<<<END \1 \2>>>", re.DOTALL)
BOUNDARY = re.compile(r"<\|[^|]*\|>|</?s>|\[/?INST\]|<<SYS>>|<(?:start|end)_of_turn>")
"""What a real judge's tokenizer takes for the end of a message: all after it is an instruction."""

Fault = Callable[["Handler"], None]


def obedient(conversation: list[dict[str, str]]) -> str:
    """9 for an answer that says Paris, else 2; 10 where it is told so outside the fences."""
    text = conversation[-1]["content"]
    tag = re.findall(r"^VERDICT ([0-9a-f]{12}): (?:MARK|WINNER)$", text, re.MULTILINE)[-1]
    fenced = {name: inside for name, _, inside in FENCE.findall(text)}
    outside = FENCE.sub("", text) + "".join(BOUNDARY.split(text)[1:])
    told = "mark of 10" in outside
    if "ANSWER" in fenced:
        return f"I have read it.\nVERDICT {tag}: {10 if told else 9 if 'Paris' in fenced['ANSWER'] else 2}"
    good = {name: "Paris" in fenced[f"ANSWER {name}"] for name in "AB"}
    winner = "TIE" if good["A"] == good["B"] else "A" if good["A"] else "B"
    return f"I have compared them.\n**VERDICT {tag}: {winner}**"


def first_is_best(conversation: list[dict[str, str]]) -> str:
    """A judge with a position bias."""
    tag = re.findall(r"^VERDICT ([0-9a-f]{12}): WINNER$", conversation[-1]["content"], re.MULTILINE)[-1]
    return f"VERDICT {tag}: A"


def echo(conversation: list[dict[str, str]]) -> str:
    """A judge that repeats the answer and says nothing of its own."""
    text = conversation[-1]["content"]
    return "The answer reads:\n" + {name: inside for name, _, inside in FENCE.findall(text)}["ANSWER"]


class Handler(BaseHTTPRequestHandler):
    """One request: a fault while there are some, then the judge."""

    server: Server
    body: dict[str, Any]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), self.body))
            self.server.times.append(time.monotonic())
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
            fault = self.server.faults.pop(0) if self.server.faults else None
        try:
            time.sleep(self.server.delay)
            (fault or self.server.always or answers)(self)
        except OSError:
            self.close_connection = True  # the client gave up
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """faults: taken one by one before the judge is heard; always: taken once they are used up."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.done = threading.Lock(), threading.Event()
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.times: list[float] = []
        self.faults: list[Fault | None] = []
        self.always: Fault | None = None
        self.judge: Callable[[list[dict[str, str]]], str] = obedient
        self.usage: Any = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        self.finish, self.delay = "stop", 0.0
        self.under_way = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        pass  # clients that go away are part of the game


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.done.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


def answers(handler: Handler) -> None:
    server = handler.server
    handler.reply(200, completion(server.judge(handler.body["messages"]), server.usage, server.finish))


def completion(said: Any, usage: Any = None, finish: str = "stop") -> bytes:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": said}}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def status(code: int, **headers: str) -> Fault:
    return lambda handler: handler.reply(code, b'{"error": {"message": "no"}}', **headers)


def reset(handler: Handler) -> None:
    """The connection breaks."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte now and then, for ever (slow loris)."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while not handler.server.done.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def hang(handler: Handler) -> None:
    handler.server.done.wait(60)
    handler.close_connection = True


def body(content: bytes) -> Fault:
    return lambda handler: handler.reply(200, content)


def flood(handler: Handler) -> None:
    """Ten billion bytes, or until the client has had enough."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n")
    while not handler.server.done.is_set():
        handler.wfile.write(b" " * 65536)
