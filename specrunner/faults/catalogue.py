"""The registry: every fault and every legitimate variant, found by name or area."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from specrunner.errors import UsageError
from specrunner.faults.bugs import FAULTS
from specrunner.faults.model import Fault
from specrunner.faults.variants import VARIANTS


def find_faults(engine: str, patterns: Iterable[str] = ()) -> tuple[Fault, ...]:
    """Return the bugs that can be planted in an engine.

    Args:
        engine: the engine's name.
        patterns: shell patterns of names or areas (`routing-*`, `mask`); none selects all.
    """
    return _select(FAULTS, engine, patterns)


def find_variants(engine: str, patterns: Iterable[str] = ()) -> tuple[Fault, ...]:
    """Return the legitimate variants of an engine; the arguments are those of `find_faults`."""
    return _select(VARIANTS, engine, patterns)


def check_patterns(patterns: Iterable[str], *, faults: bool = True, variants: bool = True) -> None:
    """Make sure that every pattern selects something, in whatever engine.

    Args:
        patterns: as for `find_faults`.
        faults: whether bugs can be selected.
        variants: whether legitimate variants can be.

    Raises:
        UsageError: a pattern selects nothing.
    """
    registry = (*(FAULTS if faults else ()), *(VARIANTS if variants else ()))
    for pattern in patterns:
        if any(_matches(fault, pattern) for fault in registry):
            continue
        if not faults:
            raise UsageError(f"no variant is called {pattern!r}", help="`specrunner prove --list` names the variants")
        areas = ", ".join(dict.fromkeys(fault.area for fault in FAULTS))
        raise UsageError(f"no fault is called {pattern!r}", help=f"name a fault, a pattern, or an area: {areas}")


def _select(registry: Iterable[Fault], engine: str, patterns: Iterable[str]) -> tuple[Fault, ...]:
    patterns = tuple(patterns)
    chosen = [fault for fault in registry if engine in fault.engines]
    return tuple(fault for fault in chosen if not patterns or any(_matches(fault, p) for p in patterns))


def _matches(fault: Fault, pattern: str) -> bool:
    return fnmatchcase(fault.name, pattern) or fault.area == pattern
