"""A chat-completion server of the tests' own, on the loopback interface, with faults to order."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def teh(data: dict[str, Any]) -> str:
    """What an editor answers that corrects the first "teh"."""
    wrong = "teh" in data["response"]
    some = [{"find": "teh", "replace": "the", "occurrence": 1}] if wrong else []
    return json.dumps({"wrong": "spelling" if wrong else "", "replacements": some})


class FakeServer:
    """Answers what `reply(data, messages)` returns; `faults` are used up first, one a request.

    Attributes:
        asked: Bodies of the chat requests.
        keys: How often each idempotency key was answered.
        headers: Headers of the last request.
    """

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any], list[dict[str, Any]]], str] = lambda data, _: teh(data)
        self.faults: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.models = ["fake"]
        self.latency = 0.0
        self.asked: list[dict[str, Any]] = []
        self.keys: Counter[str] = Counter()
        self.headers: dict[str, str] = {}
        self.times: list[float] = []
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                send(self, 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in fake.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with fake._lock:
                    fake.times.append(time.monotonic())
                    fake.headers = {name.lower(): value for name, value in self.headers.items()}
                    fault = fake.faults.pop(0) if fake.faults else None
                if fault is not None:
                    fault(self)
                    return
                time.sleep(fake.latency)
                data = json.loads(body["messages"][1]["content"])
                content = fake.reply(data, body["messages"])
                with fake._lock:
                    fake.asked.append(body)
                    fake.keys[self.headers["idempotency-key"]] += 1
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
                send(self, 200, {"choices": [choice], "usage": {"total_tokens": 10}})

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def send(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: Any,
    *,
    headers: dict[str, str] | None = None,
    content_type: str = "application/json",
) -> None:
    """A response; a `body` of bytes is sent as it is."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("content-type", content_type)
    handler.send_header("content-length", str(len(data)))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)
