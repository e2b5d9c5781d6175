"""SGLang's failures as engine errors: one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from specrunner.engines.memory import is_out_of_memory
from specrunner.engines.trust import refuse_code
from specrunner.errors import EngineError, EngineOutOfMemory, ModelUnavailable, ModelUnsupported

REFUSALS = ("ValueError", "TypeError", "NotImplementedError", "AttributeError", "KeyError", "AssertionError")
FILES = ("OSError", "FileNotFoundError", "EntryNotFoundError", "RepositoryNotFoundError", "SafetensorError")


@contextmanager
def translate_failures(what: str) -> Iterator[None]:
    """Turn what SGLang raises into an EngineError.

    Args:
        what: what was tried, e.g. `load SmolLM2`.

    Raises:
        EngineError: a subclass that fits.
    """
    try:
        yield
    except EngineError:
        raise
    except (Exception, SystemExit) as error:
        raise explain_failure(what, type(error).__name__, str(error)) from error


def explain_failure(what: str, name: str, text: str) -> EngineError:
    """Choose the EngineError for an exception of SGLang.

    Args:
        what: what was tried.
        name: the exception's class.
        text: its message.
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    if is_out_of_memory(name, text):
        return EngineOutOfMemory(f"out of memory while trying to {what}: {line}")
    if "trust_remote_code" in text:
        return refuse_code()
    if "are not supported for now" in text:
        return ModelUnsupported(f"sglang {version('sglang')} cannot {what}: {line.partition(' Supported')[0]}")
    if name in FILES:
        return ModelUnavailable(f"could not {what}: {line}")
    if name in REFUSALS:
        return ModelUnsupported(f"sglang cannot {what}: {name}: {line}")
    return EngineError(f"could not {what}: {name}: {line}")
