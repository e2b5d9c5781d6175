"""Changing a live object for a while: every change is undone when its context ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from specrunner.engines.base import Engine

Planter = Callable[[Engine], AbstractContextManager[None]]
"""Plants one fault in a loaded engine; leaving the context takes it out."""

_ABSENT = object()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give `owner` another attribute; a method of its class is shadowed, not changed."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def all_of(changes: Iterable[AbstractContextManager[None]]) -> Iterator[None]:
    """Enter several changes as one."""
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(change)
        yield
