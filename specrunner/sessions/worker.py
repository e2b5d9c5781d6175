"""The worker: the process that holds one loaded engine and answers requests over the control channel.

It is started as `python -m specrunner.sessions.worker` with the engine's own interpreter. When the caller goes away,
the channel closes and the worker and its guardian end the whole session, so that no engine process is left behind.
"""

from __future__ import annotations

import gc
import importlib
import os
import queue
import sys
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from specrunner.engines.answering import answer_request
from specrunner.engines.base import Capture, Engine
from specrunner.engines.contract import hold_to_contract
from specrunner.engines.memory import is_out_of_memory
from specrunner.engines.planters import plant
from specrunner.engines.questions import answer_questions
from specrunner.engines.trust import check_trust
from specrunner.errors import EngineError, EngineOutOfMemory, WorkerDied
from specrunner.requests import Request, Session
from specrunner.sessions.captures import bring_to_cpu, count_bytes, read_capture, write_capture
from specrunner.sessions.guardian import dismiss_guardian, end_session, start_guardian
from specrunner.sessions.protocol import CONTROL_VARIABLE, SESSION_VARIABLE, Channel, ChannelClosed

AHEAD_BYTES = 256 << 20
"""Bytes of tensors up to which a capture is written while the next is made; of larger ones, no two are held at once."""


def take_descriptors() -> tuple[int, int]:
    """Return the descriptors that the caller passed, to read from and to write to, closed to the engine's children."""
    read_fd, write_fd = (int(part) for part in os.environ.pop(CONTROL_VARIABLE).split(","))
    for descriptor in (read_fd, write_fd):
        os.set_inheritable(descriptor, False)
    return read_fd, write_fd


def read_messages(channel: Channel, messages: queue.Queue[dict[str, Any]]) -> None:
    """Feed `messages` from the channel for ever; when the caller is gone, end the session."""
    try:
        while True:
            message = channel.receive()
            if message is not None:
                messages.put(message)
    except ChannelClosed:
        end_session(os.environ[SESSION_VARIABLE])


def open_guarded_channel() -> tuple[Channel, int]:
    """Open the control channel that the caller passed; return it and the guardian's process id."""
    read_fd, write_fd = take_descriptors()
    guardian = start_guardian(read_fd, write_fd, os.environ[SESSION_VARIABLE])
    return Channel(read_fd, write_fd), guardian


def load_engine(message: dict[str, Any]) -> Engine:
    """Create the adapter named in a `load` message (not loaded yet)."""
    module, _, name = message["engine"].partition(":")
    engine_class: type[Engine] = getattr(importlib.import_module(module), name)
    session = Session.from_json(message["session"])
    return hold_to_contract(engine_class(session, message["model_path"], Path(message["workspace"])))


def describe_error(error: BaseException) -> dict[str, Any]:
    """Turn an exception into a `failed` message; out-of-memory errors are recognised whoever raised them.

    The log gets the traceback, save of an expected error without a cause: its message says all that there is to know.
    """
    if not isinstance(error, EngineError) or error.__cause__ or error.__context__:
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
    if isinstance(error, EngineError):
        lost = isinstance(error, WorkerDied | EngineOutOfMemory)  # the adapter's engine cannot answer any more
        remedy = error.help or advise(error)
        return {"type": "failed", "kind": error.kind, "message": error.message, "help": remedy, "fatal": lost}
    name = type(error).__name__
    text = str(error).strip().splitlines()
    message = f"{name}: {text[0] if text else 'no message'}"
    out_of_memory = isinstance(error, MemoryError) or is_out_of_memory(name, str(error))
    kind = EngineOutOfMemory.kind if out_of_memory else EngineError.kind
    return {"type": "failed", "kind": kind, "message": message, "help": advise(error), "fatal": out_of_memory}


def advise(error: BaseException) -> str | None:
    """Return what to do about an error whose cause is known whichever engine raised it, or None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImportError):
            return "`specrunner engines doctor` says what the engine's interpreter lacks"
        if isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause):
            return "look at `options` in the spec: they go to the engine as they are"
        cause = cause.__cause__
    return None


class Writer:
    """Writes captures, one at a time, and says so on the channel.

    Args:
        channel: to the caller.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._writing: Future[None] | None = None

    def take(self, directory: Path, capture: Capture, *, lasting: bool) -> None:
        """Say that a capture is computed, and have it written: meanwhile, where that is safe."""
        self.finish()
        capture = replace(capture, tensors=bring_to_cpu(capture.tensors))  # here, on the engine's own CUDA stream
        if lasting and count_bytes(capture.tensors) <= AHEAD_BYTES:
            self._channel.send({"type": "computed"})
            self._writing = self._thread.submit(lambda: self._channel.send(write(directory, capture)))
            return
        outcome = write(directory, capture)
        self._channel.send({"type": "computed"})
        self._channel.send(outcome)

    def finish(self) -> None:
        """Wait until nothing is left to be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def write(directory: Path, capture: Capture) -> dict[str, Any]:
    """Write a capture; return what to say of it."""
    try:
        write_capture(directory, capture)
    except Exception as error:
        return {**describe_error(error), "type": "unwritten"}
    return {"type": "written"}


def serve(channel: Channel, messages: queue.Queue[dict[str, Any]]) -> None:
    """Load the engine, then answer requests one after the other until told to close."""
    engine: Engine | None = None
    writer = Writer(channel)
    try:
        while True:
            message = messages.get()
            if message["type"] == "close":
                return
            try:
                if message["type"] == "load":
                    engine = load_engine(message)
                    check_trust(engine.session, engine.model_path, engine.capabilities())
                    answer: dict[str, Any] = {"type": "ready", "facts": engine.load()}
                    gc.collect()
                    gc.freeze()  # what stays until the end is not looked through again and again while it computes
                elif message["type"] == "answer":
                    assert engine is not None, "a question came before the load"
                    request = Request.from_json(message["request"])
                    decode = message["request"]["decode"]
                    with plant(engine, request.fault):
                        answers = answer_questions(engine, message["questions"], decode)
                    answer = {"type": "done", "facts": {"answers": answers}}
                else:
                    assert engine is not None, "a request came before the load"
                    request = Request.from_json(message["request"])
                    with plant(engine, request.fault):
                        followed = read_capture(Path(message["followed"])) if message.get("followed") else None
                        capture = answer_request(engine, request, followed)
                    writer.take(Path(message["directory"]), capture, lasting=engine.capabilities().lasting)
                    continue
            except Exception as error:
                answer = describe_error(error)
            writer.finish()
            channel.send(answer)
    finally:
        writer.finish()
        if engine is not None:
            try:
                engine.close()
            except Exception as error:
                traceback.print_exception(error, file=sys.stderr)


def main() -> None:
    """Serve one session."""
    channel, guardian = open_guarded_channel()
    os.register_at_fork(after_in_child=channel.close)  # a child that outlives us must not keep it open
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=read_messages, args=(channel, messages), daemon=True).start()
    serve(channel, messages)
    dismiss_guardian(guardian)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
