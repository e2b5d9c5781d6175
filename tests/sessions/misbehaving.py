"""An engine that does on request what real engines do by accident. Its worker process is a real one."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy

from specrunner.engines.base import Capabilities, Capture, Engine
from specrunner.errors import ModelUnavailable, WorkerDied
from specrunner.requests import Request


class LateFacts(dict[str, Any]):
    """Facts that take their time to be written, or cannot be."""

    def items(self) -> Any:
        """Do what the text says: `memory`, or the seconds to wait."""
        if self["late"] == "memory":
            raise MemoryError("can't allocate memory")
        time.sleep(float(self["late"]))
        return super().items()


class MisbehavingEngine(Engine):
    """The prompt's text says what happens."""

    name = "misbehaving"
    _helper: subprocess.Popen[bytes] | None = None

    def __init__(self, *what: Any) -> None:
        super().__init__(*what)
        self._asked: Counter[str] = Counter()

    @classmethod
    def capabilities(cls) -> Capabilities:
        """float32 on the CPU, with captures that can be written behind."""
        return Capabilities(dtypes={"cpu": ("float32",)}, lasting=True, preload=("numpy",))

    def load(self) -> dict[str, Any]:
        """Load, or fail in the way that the option `on_load` names."""
        misbehave(self.session.options.get("on_load", ""))
        if self.session.options.get("helper"):
            self._helper = subprocess.Popen(
                ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        facts = {"gpus": "CUDA_VISIBLE_DEVICES", "name_maps": "SPECRUNNER_NAME_MAPS", "wait": "OMP_WAIT_POLICY"}
        return {"pid": os.getpid(), **{fact: os.environ.get(variable) for fact, variable in facts.items()}}

    def capture(self, request: Request) -> Capture:
        """Misbehave, then answer."""
        text = request.prompt.text or ""
        reference = self.session.options.get("role") == "reference"
        if not reference or text.endswith("hang"):
            misbehave(text)
        if text == "fatal once" and request.repeat == 1:
            misbehave("kill")
        self._ask_helper()
        tensors = (
            {}
            if text == "nothing"
            else {"logits": numpy.ones((2, 1 << 16 if text.startswith("slow") else 3), numpy.float32)}
        )
        if text.startswith("slow"):  # an answer of its own, so that no other can stand in for it
            tensors["logits"][0] = zlib.crc32(text.encode()) % 1000
        if text.startswith("wrong") and not reference:
            tensors["logits"][1, 1] = 2.0
        if text.startswith(("alternating", "unsteady")):
            self._asked[text] += 1
            if self._asked[text] % 2 == 0:
                tensors["logits"][1, 1] += 1.0 if text.startswith("alternating") else 1e-6
        facts = {"pid": os.getpid(), "frozen": gc.get_freeze_count()}
        if text.startswith("late"):
            facts = LateFacts(facts, late=text.split()[1])
        return Capture(prompt_token_ids=[1, 2], tensors=tensors, facts=facts)

    def _ask_helper(self) -> None:
        """Send a line through a process of our own, as engines do that compute in children."""
        if self._helper is None:
            return
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        try:
            self._helper.stdin.write(b"step\n")
            echo = self._helper.stdout.readline()
        except OSError:
            echo = b""
        if echo != b"step\n":
            raise WorkerDied("the engine's own process is gone")


class BorrowingEngine(MisbehavingEngine):
    """The same, with tensors that the next request overwrites."""

    _buffer = numpy.zeros((2, 3), numpy.float32)

    @classmethod
    def capabilities(cls) -> Capabilities:
        """float32 on the CPU; a capture has to be on disk before the next request."""
        return Capabilities(dtypes={"cpu": ("float32",)})

    def capture(self, request: Request) -> Capture:
        """Answer with a view of the one buffer."""
        capture = super().capture(request)
        self._buffer += 1
        return replace(capture, tensors={"logits": self._buffer})


def misbehave(what: str) -> None:
    """Do one of the things that engines do."""
    if what == "exit":
        os._exit(7)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "alarm":
        os.kill(os.getpid(), 40)  # a real-time signal, which has no name
    elif what.startswith("hang"):
        for _ in range(1200):  # again and again: a log that is cut at the same moment may lose a line
            print("hanging", flush=True)
            time.sleep(0.5)
    elif what.startswith("slow"):
        time.sleep(float(what.split()[1]))
    elif what == "stubborn hang":
        print("hanging", flush=True)
        ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock: no thread of ours can run
    elif what == "greedy":
        resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
        numpy.ones(1 << 32, numpy.uint8)
    elif what == "segfault":
        ctypes.memset(ctypes.c_void_p(1), 0, 1)
    elif what.startswith("flood"):
        line = b"all work and no play\n" * 50_000
        for _ in range(int(what.split()[1])):
            os.write(1, line)
        os.write(2, b"last words\n")
    elif what == "raise":
        raise ValueError("the kernel\nwent away")
    elif what == "unavailable":
        raise ModelUnavailable("no model here", help="bring one")
    elif what == "lost":
        raise WorkerDied("the engine's own process is gone")
    elif what == "memory":
        raise MemoryError("can't allocate memory")
    elif what == "rubbish":
        sys.stdout.write('{"type": "done"}\n' * 1000 + "\x00\xff\x1b[31m" * 1000)
        sys.stdout.flush()
        os.write(1, b"\xff\xfe{]" * 100_000)
        os.write(2, b"last words\n")
    elif what.startswith("fork"):
        if not os.fork():
            time.sleep(600)
        misbehave(what.removeprefix("fork").strip())
    elif what.startswith("child"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        misbehave(what.removeprefix("child").strip())
