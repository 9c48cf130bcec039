"""Code that runs inside a vLLM server that follows a policy: loads weights from files, and checks the API key.

docs/vllm.md has the command that starts such a server by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


class Extension:
    """Methods that every worker gets; called by name over ``/collective_rpc``."""

    reload_weights: Callable[..., None]

    def align_load(self, directory: str, manifest: str) -> None:
        """Take the weights in ``directory``. manifest: JSON {file name: sha256 of its content}, all of them.

        Every checksum is compared before the first tensor is touched; raises ValueError where one differs.
        """
        self.align_verify(directory, manifest)

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name in json.loads(manifest):
                yield from load((Path(directory) / name).read_bytes()).items()

        self.reload_weights(weights_iterator=tensors())

    def align_verify(self, directory: str, manifest: str) -> None:
        """Raise ValueError where a file is not what the trainer wrote; arguments as of ``align_load``."""
        files: dict[str, str] = json.loads(manifest)
        for name, digest in files.items():
            with open(Path(directory) / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise ValueError(f"{name} is damaged: its sha256 is not what the trainer wrote")


class ApiKeyMiddleware:
    """ASGI middleware that wants the API key on every path: vLLM's own check leaves out those that change weights."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        given = dict(scope.get("headers") or ()).get(b"authorization", b"")
        if scope["type"] == "lifespan" or secrets.compare_digest(given, self.expected):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            head = {"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"application/json")]}
            await send(head)
            await send({"type": "http.response.body", "body": b'{"error": "unauthorised"}'})
