"""A hub on this machine, for the clients that `HF_ENDPOINT` leads to it: one model, at one commit."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_hub(name: str, folder: Path, token: str = "") -> Iterator[tuple[str, list[str]]]:
    """Serve the files of `folder` as the repository `name`.

    Args:
        name: `owner/name`.
        folder: its files.
        token: without it, nothing is given.

    Yields:
        The hub's address, and the files that were fetched from it, in their order.
    """
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            revisions = ("main", COMMIT)
            files = {f"/{name}/resolve/{revision}/{file}": file for revision in revisions for file in list_files()}
            if token and self.headers.get("Authorization") != f"Bearer {token}":
                self.answer(401, b"", {"X-Error-Code": "GatedRepo"})
            elif path in files:
                content = (folder / files[path]).read_bytes()
                if self.command == "GET":
                    fetched.append(files[path])
                etag = hashlib.sha256(content).hexdigest()
                self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
            elif path.startswith(f"/api/models/{name}/tree/"):
                listed = [
                    {"type": "file", "path": file, "size": (folder / file).stat().st_size, "oid": "0" * 40}
                    for file in list_files()
                ]
                self.answer(200, json.dumps(listed).encode(), {})
            elif path in (f"/api/models/{name}", *(f"/api/models/{name}/revision/{one}" for one in revisions)):
                siblings = [{"rfilename": file} for file in list_files()]
                self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), {})
            else:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Stay silent."""

    def list_files() -> list[str]:
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
