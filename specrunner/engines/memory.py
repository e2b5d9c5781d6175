"""Want of memory, told from what libraries and engines raise: each has its own class, or only words."""

from __future__ import annotations

import re

_WORDS = re.compile(
    r"out of memory|can't allocate memory|OutOfMemory|MemoryError|[Nn]ot enough memory|is less than requested memory"
)


def is_out_of_memory(name: str, text: str) -> bool:
    """Tell whether an exception says that host or device memory ran out.

    Args:
        name: the exception's class.
        text: its message.
    """
    return _WORDS.search(f"{name}: {text}") is not None
