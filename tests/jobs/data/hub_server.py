"""A server on this machine that answers as the hub does for one data set: commits, lists of files, files in ranges."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

NAME = "lab/pairs"


@dataclass
class Hub:
    """The files of each commit, what branches mean, and what was asked."""

    folder: Path
    branches: dict[str, str] = field(default_factory=lambda: {"main": "c" * 40})
    address: str = ""
    gets: list[str] = field(default_factory=list)
    """The files that were fetched as a whole."""
    ranges: list[tuple[str, int]] = field(default_factory=list)
    """The files of which a part was, and its bytes."""
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    down: bool = False
    gated: bool = False

    @property
    def head(self) -> Path:
        """The folder of the newest commit."""
        return self.folder / self.branches["main"]

    def entry(self, commit: str, path: Path) -> dict[str, Any]:
        name, content = str(path.relative_to(self.folder / commit)), path.read_bytes()
        return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """The server, for the time of a block."""
    kept = Hub(folder)

    class Handler(_Handler):
        hub = kept

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    kept.address = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield kept
    finally:
        http.shutdown()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

    def _answer(self, body: Any = None) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        hub.tokens.add(self.headers["Authorization"])
        if hub.down:
            return self._send(b"", 503)
        if hub.gated:
            return self._send(b"", 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        api, files = f"/api/datasets/{NAME}", f"/datasets/{NAME}/resolve/"
        if not path.startswith((api, files)):
            return self._send(b"", 404, {"X-Error-Code": "RepoNotFound"})
        parts = path.removeprefix(api if path.startswith(api) else files).strip("/").split("/")
        if path.startswith(api):
            what, revision, inside = parts[0], parts[1] if len(parts) > 1 else "main", "/".join(parts[2:])
        else:
            what, revision, inside = "file", parts[0], "/".join(parts[1:])
        commit = hub.branches.get(revision, revision)
        if not (hub.folder / commit).is_dir():
            return self._send(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        if what == "file":
            return self._file(commit, inside)
        if what == "tree":
            found = sorted(file for file in (hub.folder / commit / inside).rglob("*") if file.is_file())
            return self._json([hub.entry(commit, file) for file in found])
        if what == "paths-info":
            return self._json(list(self._infos(commit, body["paths"])))
        return self._json({"id": NAME, "sha": commit, "siblings": [], "private": False, "tags": [], "downloads": 0})

    def _infos(self, commit: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        for name in names:
            path = self.hub.folder / commit / name
            if path.is_file():
                yield self.hub.entry(commit, path)
            elif path.is_dir():
                yield {"type": "directory", "oid": "d" * 40, "path": name}

    def _file(self, commit: str, name: str) -> None:
        path = self.hub.folder / commit / name
        if not path.is_file():
            return self._send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        about = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if wanted := self.headers["Range"]:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            part = content[int(begin) : int(end) + 1 if end else None]
            self.hub.ranges.append((name, len(part)))
            about["Content-Range"] = f"bytes {begin}-{int(begin) + len(part) - 1}/{len(content)}"
            return self._send(part, 206, about)
        if self.command == "GET":
            self.hub.gets.append(name)
        return self._send(content, 200, about)

    def _json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), 200, {"Content-Type": "application/json"})

    def _send(self, content: bytes, code: int, about: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (about or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
