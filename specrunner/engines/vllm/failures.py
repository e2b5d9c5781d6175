"""vLLM's failures as engine errors: one line each, with the cause that vLLM itself only logs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from specrunner.engines.memory import is_out_of_memory
from specrunner.engines.trust import refuse_code
from specrunner.errors import EngineError, EngineOutOfMemory, ModelUnavailable, ModelUnsupported, WorkerDied

LOG_BYTES = 1 << 16
LONGEST_LINE = 300
CAUSE = re.compile(r"\b([A-Za-z_.]*(?:Error|Exception|Interrupt|OutOfMemory)): (\S.*)$")
UNREADABLE = (
    "SafetensorError",
    "OSError",
    "FileNotFoundError",
    "JSONDecodeError",
    "EntryNotFoundError",
    "RepositoryNotFoundError",
)
BROKEN_JSON = re.compile(r"(Unterminated string|Expecting .*|Extra data|Invalid control character).*: line \d+ column")
"""What json says of a truncated configuration or safetensors header, whatever pydantic wraps it in."""
VAGUE = ("Engine core initialization failed", "WorkerProc initialization failed", "EngineCore encountered an issue")


@contextmanager
def translate_failures(what: str, log: Path, lost: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn what vLLM raises into an EngineError.

    Args:
        what: what was tried, e.g. `load SmolLM2`.
        log: the file that this process and vLLM's own ones print to.
        lost: says, after a failure, whether vLLM has noticed that one of its processes is gone.

    Raises:
        EngineError: a subclass that fits.
    """
    try:
        yield
    except EngineError:
        raise
    except SystemExit as error:
        raise explain_failure(what, RuntimeError(f"vllm exited with status {error.code}"), log) from error
    except Exception as error:
        if lost():
            raise WorkerDied(f"a process of vllm died while trying to {what}: {first_line(error)}") from error
        raise explain_failure(what, error, log) from error


def explain_failure(what: str, error: BaseException, log: Path) -> EngineError:
    """Choose the EngineError for an exception of vLLM."""
    name, line = type(error).__name__, first_line(error)
    dead = name == "EngineDeadError"
    if dead or any(phrase in str(error) for phrase in VAGUE):
        name, line = find_cause(log) or (name, line)
    text = f"{name}: {line} {error}"
    if "No available memory for the cache blocks" in text or "larger than the available KV cache memory" in text:
        return EngineOutOfMemory(
            f"no room for the key-value cache: {line}", help="raise kv_cache_memory_bytes or lower max_model_len"
        )
    if is_out_of_memory(name, f"{line} {error}"):
        return EngineOutOfMemory(f"out of memory while trying to {what}: {line}")
    if dead:
        return WorkerDied(f"the engine's core died: {name}: {line}")
    if "trust_remote_code" in text:
        return refuse_code()
    if name in UNREADABLE or BROKEN_JSON.search(line):
        return ModelUnavailable(f"could not {what}: {line}")
    if re.search(
        r"not supported|unsupported|does not support|failed to be inspected|not recognize", text, re.IGNORECASE
    ):
        return ModelUnsupported(f"vllm cannot {what}: {line}")
    if name in ("ValidationError", "VLLMValidationError", "ValueError", "TypeError", "NotImplementedError"):
        return ModelUnsupported(f"vllm cannot {what}: {name}: {line}")
    return EngineError(f"could not {what}: {name}: {line}")


def first_line(error: BaseException) -> str:
    """Return the line of a message that says what is wrong; pydantic puts a heading and the field's name above it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    field = ""
    if len(lines) > 1 and re.match(r"\d+ validation errors? for", lines[0]):
        lines = lines[1:]
        if len(lines) > 1 and " " not in lines[0]:
            field, lines = f"{lines[0]}: ", lines[1:]
    line = field + re.sub(r"^Value error, |\s*\[type=.*$| Supported architectures: .*$", "", lines[0])
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def find_cause(log: Path) -> tuple[str, str] | None:
    """Return the last exception in a log, its class name and message; those that only point elsewhere do not count."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - LOG_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return None
    for line in reversed(text.splitlines()):
        found = CAUSE.search(line)
        if found and not any(phrase in line for phrase in VAGUE):
            return found.group(1).rpartition(".")[2], first_line(RuntimeError(found.group(2)))
    return None
