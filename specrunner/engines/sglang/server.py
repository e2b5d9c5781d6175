"""SGLang's full Engine: scheduler and detokenizer processes of its own, watched while a request waits for them."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specrunner.engines.forking import fork_children
from specrunner.engines.sglang.failures import explain_failure
from specrunner.engines.sglang.notes import NOTES_FOLDER, Mailbox, Note, Order
from specrunner.engines.sglang.plugin import (
    FAILURE_FILE,
    MODEL_FILE,
    PLUGIN_VARIABLE,
)
from specrunner.engines.sglang.room import check_served, check_whole
from specrunner.errors import EngineOutOfMemory, ModelUnsupported, WorkerDied
from specrunner.words import describe_exit

WATCH_SECONDS = 0.2
"""How often the engine's processes are looked at while a request runs."""

ENTRY_POINT = "[sglang.srt.plugins]\nspecrunner = specrunner.engines.sglang.plugin:register\n"
METADATA = "Metadata-Version: 2.1\nName: specrunner-sglang\nVersion: 0\n"


class Server:
    """A running Engine.

    Args:
        keywords: arguments of `sglang.Engine`.
        workspace: folder for the plugin, orders and notes.
        label: the model's name, for messages.
        mask_id: the checkpoint's mask token, or None to keep SGLang's.
        block_length: tokens in a block of a model that decodes by block diffusion, else None.

    Attributes:
        described: what was loaded, see `plugin.describe_model`.
    """

    def __init__(
        self, keywords: Mapping[str, Any], workspace: Path, label: str, mask_id: int | None, block_length: int | None
    ) -> None:
        self._folder = workspace / "sglang"
        (self._folder / NOTES_FOLDER).mkdir(parents=True)
        self._mailbox = Mailbox(self._folder)
        self._block_length = block_length
        install_plugin(workspace / "plugin")
        settings = {"workspace": str(self._folder), "mask_id": mask_id, "diffusion": block_length is not None}
        os.environ[PLUGIN_VARIABLE] = json.dumps(settings)
        from sglang.srt.entrypoints.engine import Engine

        self._children: list[Any] = []
        try:
            with fork_children():
                self._engine = Engine(custom_sigquit_handler=ignore_signal, **keywords)
        except BaseException as error:
            self._raise_reported(f"load {label}")
            if isinstance(error, RuntimeError) and "died during initialization" in str(error):
                cause = str(error).partition(". ")[0]
                raise WorkerDied(f"sglang's scheduler ended while it loaded {label}: {cause}") from error
            raise
        self._engine.tokenizer_manager.signal_handler_class = quiet_handler()
        self._children = list(multiprocessing.active_children())
        self.described: dict[str, Any] = json.loads((self._folder / MODEL_FILE).read_text(encoding="utf-8"))

    def run(
        self,
        ids: list[int],
        order: Order,
        max_new_tokens: int,
        ignore_eos: bool,
        has_stopped: Callable[[Sequence[int]], bool] = lambda ids: False,
        companions: Sequence[list[int]] = (),
    ) -> tuple[list[int], dict[str, Any], list[list[Note]]]:
        """Send one request and wait for it, as `Runner.run`; the scheduler generates on, whatever `has_stopped` says.

        Raises:
            WorkerDied: a process of the engine is gone.
            ModelUnsupported: the engine refused the request, or would cut it short.
            CaptureIncomplete: the engine cut the tokens short.
        """
        for prompt in (ids, *companions):
            check_served(self.described, len(prompt), max_new_tokens, self._block_length)
        self._mailbox.put_order(order)
        self._check_alive()
        keywords: dict[str, Any] = {
            "input_ids": ids,
            "sampling_params": {"temperature": 0.0, "max_new_tokens": max_new_tokens, "ignore_eos": ignore_eos},
        }
        if order.wants_logits and self._block_length is None:
            keywords |= {"return_logprob": True, "logprob_start_len": 0}
        if companions:
            prompts = [ids, *companions]
            keywords |= {"input_ids": prompts, "rid": [order.request_ids(number) for number in range(len(prompts))]}
        answers = self._engine.loop.run_until_complete(self._wait(keywords))
        answer = answers[0] if companions else answers
        reason = answer["meta_info"]["finish_reason"] or {}
        if reason.get("type") == "abort":
            raise ModelUnsupported(f"sglang refused the request: {reason.get('message')}")
        output, notes = list(answer["output_ids"]), self._mailbox.take_notes(order)
        check_whole(output, reason.get("type"), max_new_tokens)
        facts = {"finish_reason": reason.get("type"), "cached_tokens": answer["meta_info"].get("cached_tokens", 0)}
        return output, facts, notes

    async def _wait(self, keywords: dict[str, Any]) -> Any:
        task = asyncio.ensure_future(self._engine.async_generate(**keywords))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=WATCH_SECONDS)
                if not task.done():
                    self._check_alive()
        finally:
            if not task.done():
                task.cancel()
        return task.result()

    def _check_alive(self) -> None:
        """Look after the engine's processes.

        Raises:
            EngineError: one of them is gone, or has reported why it is about to go.
        """
        self._raise_reported("answer the request")
        for child in self._children:
            if child.exitcode is not None:
                self._raise_reported("answer the request")
                raise WorkerDied(f"a process of sglang (pid {child.pid}) {describe_exit(child.exitcode)}")

    def _raise_reported(self, what: str) -> None:
        """Raise the exception that a scheduler process has left behind, if there is one."""
        try:
            failure = json.loads((self._folder / FAILURE_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        error = explain_failure(what, failure["type"], failure["text"] or failure["message"])
        if self._children and not isinstance(error, EngineOutOfMemory):
            error = WorkerDied(f"sglang's scheduler failed: {failure['type']}: {failure['message']}")
        raise error

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.shutdown()


def install_plugin(folder: Path) -> None:
    """Make the plugin known to SGLang in this process and its children: an entry point on the import path."""
    metadata = folder / "specrunner_sglang-0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(METADATA, encoding="utf-8")
    (metadata / "entry_points.txt").write_text(ENTRY_POINT, encoding="utf-8")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    if os.environ.get("SGLANG_PLUGINS"):
        os.environ["SGLANG_PLUGINS"] += ",specrunner"


def ignore_signal(_number: int, _frame: Any) -> None:
    """Take SIGQUIT, by which a failing scheduler would have SGLang kill this process before it can say why."""


def quiet_handler() -> type:
    """Return SGLang's signal handler without the part that kills this process."""
    from sglang.srt.managers.tokenizer_manager import SignalHandler

    class QuietHandler(SignalHandler):  # type: ignore[misc]
        def running_phase_sigquit_handler(self, signum: Any = None, frame: Any = None) -> None:
            """Leave it to the adapter, which looks after the processes while it waits."""

    return QuietHandler
