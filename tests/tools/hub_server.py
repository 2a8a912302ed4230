# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""A small Hub on loopback, of what clients ask when they publish and load.

It proves what our code makes of a Hub's answers, not what the real Hub answers.
"""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

from hub_state import Hub, RefusalError


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", r"/api/repos/create", Hub.create),
    ("POST", r"/api/validate-yaml", Hub.validate),
    ("POST", rf"/api/models/{REPO}/branch/(?P<branch>.+)", Hub.branch),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>.+)", Hub.preupload),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>.+)", Hub.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Hub.batch),
    ("GET", r"/api/models", Hub.models),
    ("GET", rf"/api/models/{REPO}", Hub.model),
    ("GET", rf"/api/models/{REPO}/revision/(?P<revision>.+)", Hub.model),
    ("GET", rf"/api/models/{REPO}/refs", Hub.refs),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>.+)", Hub.tree),
    ("GET", rf"/{REPO}/resolve/(?P<revision>refs%2Fpr%2F\d+|[^/]+)/(?P<path>.+)", Hub.file),
]


class Handler(BaseHTTPRequestHandler):
    """Reads requests and writes answers; `hub` is set by `serve`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body of an answer waits until the headers are acknowledged
    hub: Hub

    def do_PUT(self):
        size = int(self.headers["Content-Length"])
        if self.hub.cuts is None or self.hub.cuts > 0:
            self.rfile.read(size // 2)
            if self.hub.cuts:
                self.hub.cuts -= 1
            self.close_connection = True
            return
        content = self.rfile.read(size)
        self.hub.blobs[hashlib.sha256(content).hexdigest()] = content
        self.hub.uploaded.append(size)
        self._send(200, b"", {})

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_lines = self.headers.get("Content-Type") == "application/x-ndjson"
        self._answer("POST", [json.loads(line) for line in content.splitlines()] if is_lines else json.loads(content))

    def do_GET(self):
        self._answer("GET", None)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, method: str, body) -> None:
        url = urlsplit(self.path)
        if self.hub.dropped and self.hub.dropped in url.path:
            self.close_connection = True
            return None
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        try:
            for known, pattern, action in ROUTES:
                found = re.fullmatch(pattern, url.path)
                if known == method and found:
                    groups = {name: unquote(value) for name, value in found.groupdict().items()}
                    return self._send_result(action(self.hub, token, body, parse_qs(url.query), **groups))
            raise RefusalError(404, f"No answer to {method} {url.path}")
        except RefusalError as refusal:
            self._send(refusal.status, json.dumps(refusal.body).encode(), refusal.headers)

    def _send_result(self, result) -> None:
        content, headers = result if isinstance(result, tuple) else (json.dumps(result).encode(), {})
        self._send(200, content, headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args) -> None:
        """Silence: what failed, the client's error says."""


def serve() -> Hub:
    """A Hub that runs until the process ends; its `url` is what HF_ENDPOINT must be."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    return hub
