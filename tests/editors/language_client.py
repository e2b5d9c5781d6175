"""A client of a language server: just enough of the protocol to ask what an editor asks."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WAIT = 240.0


class LanguageClient:
    """Speaks JSON-RPC with a server over its standard streams.

    Args:
        command: how to start it.
        root: the workspace's folder.
    """

    def __init__(self, command: Sequence[str], root: Path) -> None:
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
        )
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._diagnostics: dict[str, list[dict[str, Any]]] = {}
        self._last = 0
        threading.Thread(target=self._read, daemon=True).start()
        capabilities = {"textDocument": {"publishDiagnostics": {}, "hover": {"contentFormat": ["markdown"]}}}
        self.request("initialize", {"processId": None, "rootUri": root.as_uri(), "capabilities": capabilities})
        self._send({"method": "initialized", "params": {}})
        settings = {"yaml": {"schemaStore": {"enable": False}, "validate": True, "hover": True, "completion": True}}
        self._send({"method": "workspace/didChangeConfiguration", "params": {"settings": settings}})

    def open(self, file: Path) -> list[dict[str, Any]]:
        """Open a file as an editor does, and return the diagnostics that the server publishes for it."""
        uri = file.as_uri()
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": file.read_text(encoding="utf-8")}
        self._diagnostics.pop(uri, None)
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
        while uri not in self._diagnostics:
            self._take()
        return self._diagnostics[uri]

    def ask(self, what: str, file: Path, line: int, character: int) -> Any:
        """Return the answer to `textDocument/WHAT` at a place; both numbers count from 0."""
        place = {"textDocument": {"uri": file.as_uri()}, "position": {"line": line, "character": character}}
        return self.request(f"textDocument/{what}", place)

    def request(self, method: str, params: dict[str, Any]) -> Any:
        """Send a request and return its result."""
        self._last += 1
        number = self._last
        self._send({"id": number, "method": method, "params": params})
        while True:
            message = self._take()
            if message.get("id") == number and "method" not in message:
                assert "error" not in message, message["error"]
                return message.get("result")

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.communicate()

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._server.stdin is not None
        self._server.stdin.write(b"Content-Length: %d\r\n\r\n" % len(data) + data)
        self._server.stdin.flush()

    def _take(self) -> dict[str, Any]:
        message = self._messages.get(timeout=WAIT)
        assert message is not None, "the server ended"
        if message.get("method") == "textDocument/publishDiagnostics":
            self._diagnostics[message["params"]["uri"]] = message["params"]["diagnostics"]
        elif "method" in message and "id" in message:  # what a server asks of an editor: nothing of ours depends on it
            self._send({"id": message["id"], "result": None})
        return message

    def _read(self) -> None:
        stream = self._server.stdout
        assert stream is not None
        while header := stream.readline():
            length = int(header.split(b":")[1])
            while stream.readline().strip():
                pass
            self._messages.put(json.loads(stream.read(length)))
        self._messages.put(None)
