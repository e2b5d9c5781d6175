"""The fork servers of a run: one for each interpreter, engine and environment that its sessions have."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from specrunner.sessions.answers import Tell
from specrunner.sessions.fork_client import ForkServer
from specrunner.sessions.process import WORKER, Child, Fork, link_package
from specrunner.sessions.protocol import Channel

MOST_SERVERS = 4
"""Fork servers at once; each keeps an imported engine in memory, which its workers share."""

PLACE = "\0workspace"
"""Stands for a session's own folder where environments are told apart."""

IGNORED = ("SPECRUNNER_", "PYTEST_")
"""How the names of variables begin that no engine reads when it is imported."""


@dataclass(frozen=True)
class _Kind:
    """What makes two servers the same."""

    python: Path
    modules: tuple[str, ...]
    variables: frozenset[tuple[str, str]]


class ForkServers:
    """The fork servers of a run.

    Args:
        directory: where their folders are made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._servers: dict[_Kind, ForkServer | None] = {}
        self._lock = threading.Lock()

    def prepare(
        self,
        python: Path,
        modules: Sequence[str],
        workspace: Path,
        watch: Callable[[], Tell] | None,
        cancelled: Callable[[], bool],
        *,
        program: str = WORKER,
    ) -> Fork | None:
        """Return what forks a worker that has imported some modules; None where that is not done.

        Args:
            python: the engine's interpreter.
            modules: that every load of the engine imports.
            workspace: the session's; where variables name it, the server's own folder stands for it.
            watch: begins to watch what the session's answers come from; None where nobody will ask. What was imported
                before serves only while that is what it was.
            cancelled: polled ten times a second; the fork then raises `process.Cancelled`.
            program: the module whose `main` the forked process runs.
        """
        if not modules or not can_fork():
            return None

        def fork(variables: Mapping[str, str], mark: str, log: IO[bytes], folder: Path) -> tuple[Child, Channel] | None:
            server = self._find(python, tuple(modules), variables, workspace, watch)
            return server.fork(program, variables, mark, log, folder, cancelled) if server is not None else None

        return fork

    def import_ahead(
        self,
        python: Path,
        modules: Sequence[str],
        variables: Mapping[str, str],
        workspace: Path,
        watch: Callable[[], Tell] | None,
    ) -> bool:
        """Start the server that a session will be forked off, unless there is one, or hardly room for it.

        Args:
            python: see `prepare`, as of the rest.
            modules: to import.
            variables: the session's whole environment.
            workspace: the session's.
            watch: begins to watch what the session's answers come from.

        Returns:
            Whether one was started.
        """
        if not modules or not can_fork():
            return False
        kind, plain = describe_kind(python, tuple(modules), variables, workspace)
        with self._lock:
            if kind in self._servers or len(self._list_alive()) >= MOST_SERVERS - 1:
                return False
            self._servers[kind] = self._start(kind, plain, watch() if watch is not None else None)
            return self._servers[kind] is not None

    def _find(
        self,
        python: Path,
        modules: tuple[str, ...],
        variables: Mapping[str, str],
        workspace: Path,
        watch: Callable[[], Tell] | None,
    ) -> ForkServer | None:
        """Return the server for a session, started if need be; None where there is none and can be none."""
        kind, plain = describe_kind(python, modules, variables, workspace)
        with self._lock:
            if kind not in self._servers:
                if not self._make_room():
                    return None
                self._servers[kind] = self._start(kind, plain, watch() if watch is not None else None)
                return self._servers[kind]
            server = self._servers[kind] = self._servers.pop(kind)  # the last in order is the one used last
        if server is not None and watch is not None and not server.is_current():
            return None  # what it has imported may not be what the session's stamp says
        return server

    def _list_alive(self) -> list[_Kind]:
        return [kind for kind, server in self._servers.items() if server is not None and not server.is_over]

    def _make_room(self) -> bool:
        """Where there are too many servers, end the one that was used longest ago of those that have nothing to do.

        Returns:
            Whether there is room for one more.
        """
        alive = self._list_alive()
        if len(alive) < MOST_SERVERS:
            return True
        for kind in alive:
            server = self._servers[kind]
            if server is not None and not server.running:
                del self._servers[kind]
                server.close()
                return True
        return False

    def _start(self, kind: _Kind, plain: Mapping[str, str], unchanged: Tell | None) -> ForkServer | None:
        folder = Path(tempfile.mkdtemp(prefix="forks-", dir=self._directory))
        link_package(folder)
        own = {name: value.replace(PLACE, str(folder)) for name, value in plain.items()}
        if "TMPDIR" in own:
            Path(own["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        try:
            return ForkServer(kind.python, kind.modules, own, folder, unchanged)
        except OSError:
            return None

    def close(self) -> None:
        """End all of them; no worker may be running."""
        with self._lock:
            for server in self._servers.values():
                if server is not None:
                    server.close()
            self._servers.clear()


def describe_kind(
    python: Path, modules: tuple[str, ...], variables: Mapping[str, str], workspace: Path
) -> tuple[_Kind, dict[str, str]]:
    """Return which server serves a session, and its variables with `PLACE` for the session's workspace."""
    plain = {name: value.replace(str(workspace), PLACE) for name, value in variables.items()}
    told = frozenset(item for item in plain.items() if not item[0].startswith(IGNORED))
    return _Kind(python, modules, told), plain


def can_fork() -> bool:
    """Tell whether this machine has what forking workers takes: Linux's /proc, and descriptors of processes."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open") and Path("/proc/self/stat").exists()
