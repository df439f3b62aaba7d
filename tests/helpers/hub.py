"""A hub on this machine: as much of the HTTP interface of the Hugging Face hub as an upload needs.

The real ``huggingface_hub`` talks to it, so what is tested is what is sent.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_of_a_test"
USER, LAB = "tester", "lab"
REPOSITORY = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(preupload|commit|tree)/main)?")


@dataclass
class LocalHub:
    """What was asked of the hub, and what it holds.

    Attributes:
        address: where it listens.
        role: of the token.
        requests: method and path of each, in order.
        private: by type and name, whether each repository is private.
        files: by type and name, the files of each repository by path.
        cards: metadata of models that are there already.
        failing: a part of a path that is answered with an error.
    """

    address: str
    role: str = "write"
    requests: list[str] = field(default_factory=list)
    private: dict[tuple[str, str], bool] = field(default_factory=dict)
    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    failing: str | None = None

    @property
    def writes(self) -> list[str]:
        """The requests that change something."""
        return [request for request in self.requests if re.search("repos/create|commit|preupload", request)]

    def download(self, kind: str, name: str, folder: Path) -> Path:
        """Write the files of a repository to a folder, as one would get them."""
        for path, content in self.files[kind, name].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers for a request."""
        self.requests.append(f"{method} {path}")
        if self.failing is not None and self.failing in path:
            return 403, {"error": "not for you"}, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}, {}
        if path == "/api/whoami-v2":
            account = {"name": USER, "type": "user", "orgs": [{"name": LAB}]}
            return 200, {**account, "auth": {"accessToken": {"role": self.role}}}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        found = REPOSITORY.fullmatch(path)
        assert found is not None, f"an upload asks for {path}"
        kind, name, what = found.groups()
        if (kind, name) not in self.private and name not in self.cards:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        return self._repository((kind, name), what, body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        kind, name = asked.get("type") or "model", f"{asked['organization'] or USER}/{asked['name']}"
        address = {"url": f"{self.address}/{'datasets/' if kind == 'dataset' else ''}{name}"}
        if (kind, name) in self.private:
            return 409, address, {}
        self.private[kind, name] = asked.get("visibility") == "private"
        self.files[kind, name] = {}
        return 200, address, {}

    def _repository(self, key: tuple[str, str], what: str | None, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if what is None:
            about = {"id": key[1], "sha": "0" * 40, "private": self.private.get(key, False)}
            return 200, {**about, "cardData": self.cards.get(key[1])}, {}
        if what == "tree":
            files = self.files[key].items()
            return 200, [{"type": "file", "path": path, "oid": "0", "size": len(data)} for path, data in files], {}
        if what == "preupload":
            asked = json.loads(body)["files"]
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            return 200, {"files": files}, {}
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                self.files[key][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "deletedFile":
                del self.files[key][item["value"]["path"]]
        return 200, {"commitUrl": f"{self.address}/{key[1]}/commit/1", "commitOid": "1" * 40}, {}


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub that ``huggingface_hub`` takes for the one there is, here and in processes that are started; logged in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = server.hub = LocalHub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name, value in (("HF_TOKEN", TOKEN), ("HF_ENDPOINT", hub.address), ("HF_HUB_OFFLINE", "0")):
        monkeypatch.setenv(name, value)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub: LocalHub = self.server.hub  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        status, content, headers = hub.answer(self.command, path, self.headers.get("Authorization"), body)
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen."""
