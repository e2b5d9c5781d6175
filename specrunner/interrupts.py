"""What the user's signals ask of a run: to start nothing more, or to end at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Interrupts:
    """Interrupts of one run.

    Attributes:
        obey: called after each signal that comes once the run is prepared.
        count: signals that have come.
        at_once: whether what runs shall end, too.
        preparing: whether a signal gives up the preparation, by a KeyboardInterrupt in the main thread.
    """

    obey: Callable[[], None]
    count: int = 0
    at_once: bool = False
    preparing: bool = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals: the first interrupt starts nothing more, the second ends the workers, SIGTERM does both.

        Reports that are being written are written whole. Outside of the main thread signals are left alone, and so is
        one that the caller of the command has it ignore, as shells do with SIGINT for what a script starts with `&`.
        """

        def on_signal(number: int, _frame: Any) -> None:
            self.count += 1
            self.at_once |= self.count > 1 or number == signal.SIGTERM
            if self.preparing:
                self.preparing = False
                raise KeyboardInterrupt
            self.obey()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, on_signal) for number in taken}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def preparation(self) -> Iterator[None]:
        """Have signals give up what is done in this context.

        Raises:
            KeyboardInterrupt: one comes, or has come already.
        """
        self.preparing = True
        try:
            if self.count:
                raise KeyboardInterrupt
            yield
        finally:
            self.preparing = False
