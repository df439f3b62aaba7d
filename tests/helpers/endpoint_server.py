"""A real HTTP server with chat completions that answers as it is told, well or badly, and logs what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each request by the server's ``reply``."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        with server.lock:
            server.asked.append(request)
            server.headers.append(dict(self.headers))
            server.paths.append(self.path)
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            server.reply(self, request)
        finally:
            with server.lock:
                server.under_way -= 1

    def send(self, body: Any, status: int = 200, **headers: str) -> None:
        """Send a body, as JSON unless it is text."""
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        data = text.encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def say(self, content: str | None, finish_reason: str = "stop", **fields: Any) -> None:
        """Send a completion."""
        message = {"role": "assistant", "content": content, **fields}
        self.send(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
            }
        )

    def fail(self, status: int, message: str = "no", code: str | None = None, **headers: str) -> None:
        """Send an error as services do."""
        self.send({"error": {"message": message, "code": code, "type": "error"}}, status, **headers)

    def break_off(self, sent: str = "") -> None:
        """Announce a long body, send a part, and close the connection."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "10000")
        self.end_headers()
        self.wfile.write(sent.encode())
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen."""


@contextmanager
def endpoint_server(reply: Reply) -> Iterator[Any]:
    """A server on a free port, with ``url``, ``asked``, ``headers``, ``paths`` and ``most_under_way``."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.reply, server.asked, server.headers, server.paths = reply, [], [], []
    server.lock, server.under_way, server.most_under_way = threading.Lock(), 0, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def in_turn(*replies: Reply) -> Reply:
    """Each reply once, in order; the last one again and again."""
    left = list(replies)

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(handler, request)

    return reply


def saying(text: str) -> Reply:
    """The same answer to everything."""
    return lambda handler, _: handler.say(text)


def slowly(text: str, seconds: float) -> Reply:
    """An answer after some time."""

    def reply(handler: Handler, _: dict[str, Any]) -> None:
        time.sleep(seconds)
        handler.say(text)

    return reply
