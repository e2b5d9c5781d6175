"""Expected errors, and the exit codes they end a command with.

    SpecrunnerError                 something the user can act on; everything else is a bug of ours (exit 3)
    ├── UsageError                  a wrong command line (exit 4)
    ├── ConfigurationError          a wrong setting, profile or environment variable (exit 4)
    ├── SpecError                   invalid specs; carries its diagnostics (exit 4)
    ├── NothingVerified             the selection is empty, or every case was skipped (exit 5)
    ├── GoldenError                 a golden cannot be read, or must not be written (exit 4; verdict `error` in a case)
    └── EngineError                 no evidence could be had from an engine (verdict `error`, exit 10)
        ├── EngineMissing           the engine is not installed (verdict `skipped`, `error` under --strict)
        ├── CapabilityMissing       the machine or the engine lacks what the case requires (verdict `skipped`)
        ├── ModelUnavailable        the model's files are not there or cannot be read
        ├── ModelUnsupported        the engine cannot run this architecture, dtype or request
        ├── EngineOutOfMemory       the engine ran out of host or device memory
        ├── EngineTimeout           the engine did not answer in time
        ├── WorkerDied              the engine's process ended without an answer
        ├── SelfComparison          two sides of a comparison are one session on this machine
        ├── FaultInapplicable       a fault cannot be planted in this engine or model (`specrunner prove`)
        └── CaptureIncomplete       hooks did not fire, rows or tensors are missing, a capture lacks its completion mark
            └── FollowedMissing     a request follows another capture, and that one was not made

A caller writes:

    try:
        cases = load_specs(["specs/"]).require_valid()
    except SpecrunnerError as error:
        sys.exit(error.exit_code)
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

from specrunner.words import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from specrunner.spec.diagnostics import Diagnostic


class ExitCode(IntEnum):
    """What a command's exit status says (DESIGN section 10)."""

    PASSED = 0
    FAILED = 1
    INTERRUPTED = 2
    BUG = 3
    USAGE = 4
    NOTHING_VERIFIED = 5
    ERRORS = 10


class SpecrunnerError(Exception):
    """An error the user can act on.

    Args:
        message: a lower-case fragment that fits after "error: ".
        help: what to do about it, one sentence, or None.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE

    def __init__(self, message: str, *, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help


class UsageError(SpecrunnerError):
    """A wrong command line."""


class ConfigurationError(SpecrunnerError):
    """A wrong setting, profile or environment variable."""


class SpecError(SpecrunnerError):
    """One or more invalid specs.

    Args:
        diagnostics: every problem found, in the order of files and lines; never empty.
    """

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__(f"{plural(len(diagnostics), 'problem')} in the specs")
        self.diagnostics = tuple(diagnostics)


class NothingVerified(SpecrunnerError):
    """The selection is empty, or every selected case was skipped."""

    exit_code = ExitCode.NOTHING_VERIFIED


class GoldenError(SpecrunnerError):
    """A golden that cannot be read, or must not be written.

    Args:
        message: a lower-case fragment.
        help: the remedy.
        kind: what is the matter, for reports: `golden-missing`, `golden-damaged`, `golden-stale`, `golden-refused`.
    """

    def __init__(self, message: str, *, help: str | None = None, kind: str = "golden-damaged") -> None:
        super().__init__(message, help=help)
        self.kind = kind


class EngineError(SpecrunnerError):
    """No evidence could be had from an engine.

    Args:
        message: what went wrong, a lower-case fragment.
        help: the remedy, or None.
        log_tail: the last lines that the engine's process printed, or "".
    """

    exit_code = ExitCode.ERRORS
    kind: ClassVar[str] = "engine-error"

    def __init__(self, message: str, *, help: str | None = None, log_tail: str = "") -> None:
        super().__init__(message, help=help)
        self.log_tail = log_tail


class EngineMissing(EngineError):
    """The engine is not installed in any environment we know."""

    kind = "engine-missing"


class CapabilityMissing(EngineError):
    """The machine or the engine lacks what the case requires."""

    kind = "capability-missing"


class ModelUnavailable(EngineError):
    """The model's files are not there or cannot be read."""

    kind = "model-unavailable"


class ModelUnsupported(EngineError):
    """The engine cannot run this architecture, dtype or request."""

    kind = "model-unsupported"


class EngineOutOfMemory(EngineError):
    """The engine ran out of host or device memory."""

    kind = "out-of-memory"


class EngineTimeout(EngineError):
    """The engine did not answer in time."""

    kind = "timeout"


class WorkerDied(EngineError):
    """The engine's process ended without an answer."""

    kind = "worker-died"


class SelfComparison(EngineError):
    """Two sides of a comparison are one and the same session, so that it compares nothing."""

    kind = "self-comparison"


class FaultInapplicable(EngineError):
    """A fault cannot be planted in this engine, model or request."""

    kind = "fault-inapplicable"


class CaptureIncomplete(EngineError):
    """Hooks did not fire, rows or tensors are missing, or a capture lacks its completion mark."""

    kind = "capture-incomplete"


class FollowedMissing(CaptureIncomplete):
    """A request follows another capture, and that one was not made: whatever cost it is the cause."""


SKIPPING = (EngineMissing.kind, CapabilityMissing.kind)
"""What the machine lacks, and nobody did wrong: a case is skipped for it, unless the run is strict."""

ENGINE_ERRORS: dict[str, type[EngineError]] = {
    error.kind: error
    for error in (
        EngineError,
        EngineMissing,
        CapabilityMissing,
        ModelUnavailable,
        ModelUnsupported,
        EngineOutOfMemory,
        EngineTimeout,
        WorkerDied,
        SelfComparison,
        FaultInapplicable,
        CaptureIncomplete,
    )
}
"""Engine errors by their kind, so that a worker can name one over the pipe."""
