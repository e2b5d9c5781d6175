"""`specrunner` as a process of its own that did not have to import torch: it is forked from one that has it already.

Importing torch is two thirds of the work of a short run. The process that is forked from holds nothing of ours: a
command imports `specrunner` and its plugins anew, in its own session, folder, environment and output.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

PRELOADED = ["torch", "safetensors.torch", "yaml", "jsonschema", "jinja2", "junit_xml", "tests.commands"]


@cache
def find_server() -> ForkServerContext:
    """Return the server that commands are forked from; it is started, with a neutral environment, with the first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def start_process(function: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Start a function of a module in a process that has torch already."""
    process = find_server().Process(target=function, args=arguments, daemon=True)
    with pytest.MonkeyPatch.context() as patch:  # what the server inherits must not look like a test's process
        patch.delenv("SPECRUNNER_TEST", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        process.start()
    return process


class Command:
    """A started `specrunner` command, with the part of `subprocess.Popen` that tests need.

    Args:
        arguments: after `specrunner`.
        folder: where it runs.
        environment: all of it.

    Attributes:
        pid: its process and session id.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        output = tempfile.mkdtemp(prefix="command-")
        self._forget = weakref.finalize(self, shutil.rmtree, output, ignore_errors=True)
        self._files = [Path(output) / name for name in ("stdout", "stderr")]
        files = [str(file) for file in self._files]
        self._process = start_process(run_command, list(arguments), str(folder), dict(environment), files)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it ends, and return what it wrote to stdout and stderr.

        Raises:
            subprocess.TimeoutExpired: it runs still; it is ended, and a note says where its threads were.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            expired = subprocess.TimeoutExpired("specrunner", timeout or 0.0)
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGABRT)
            self._process.join(10)
            expired.add_note(self._files[1].read_text(encoding="utf-8", errors="replace"))
            raise expired
        stdout, stderr = (file.read_text(encoding="utf-8") for file in self._files)
        self._forget()
        return stdout, stderr


def run_command(arguments: list[str], folder: str, environment: dict[str, str], files: list[str]) -> None:
    """Become `python -m specrunner` in the forked process."""
    assert not any(name.partition(".")[0] == "specrunner" for name in sys.modules), "something of ours was there before"
    os.setsid()
    os.chdir(folder)
    ours = os.environ.get("PYTHONPATH", "")
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate([os.devnull, *files]):
        handle = os.open(file, os.O_RDWR | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - as the interpreter opens them
        for number, mode in enumerate("rww")
    )
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
    faulthandler.enable(sys.stderr)  # a hang is ended by SIGABRT, and says where it was
    tempfile.tempdir = None  # the one of the environment
    sys.orig_argv = [sys.executable, "-m", "specrunner", *arguments]
    sys.argv = ["specrunner", *arguments]
    inherited = ours.split(os.pathsep)
    sys.path = [
        *(place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place),
        *(place for place in sys.path if place not in inherited),
    ]
    importlib.invalidate_caches()
    if importlib.util.find_spec("sitecustomize"):
        importlib.import_module("sitecustomize")
    runpy.run_module("specrunner", run_name="__main__", alter_sys=False)
