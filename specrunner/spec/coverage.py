"""Which tensor names patterns select, judged before any model is loaded.

Layer numbers are not known yet, so patterns are tried on every name of the vocabulary at all layer numbers that could
tell them apart: those they mention, their continuations, and some that they do not mention.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from specrunner.spec.tensor_names import PASSES, TEMPLATES, compile_pattern, model_order

_OTHER_NUMBER = "314159"
_FEW = 8
MAX_NUMBERS = 256
"""Different layer numbers that the patterns of one case may mention."""


@lru_cache(maxsize=1024)
def sample_names(patterns: tuple[str, ...], templates: tuple[str, ...] = TEMPLATES) -> tuple[str, ...]:
    """Return names of the vocabulary, in model order, at every layer number that could matter to `patterns`."""
    mentioned = {number[:6] for pattern in patterns for number in re.findall(r"\d+", pattern)}
    numbers = {
        *"0123456789",
        _OTHER_NUMBER,
        *mentioned,
        *(stem + digit for stem in mentioned for digit in "0123456789"),
    }
    numbers = {number for number in numbers if number == "0" or not number.startswith("0")}
    names = {template.replace("{i}", number) for template in templates for number in numbers}
    return tuple(sorted(names, key=model_order))


def count_numbers(patterns: Iterable[str]) -> int:
    """Return how many different layer numbers patterns mention."""
    return len({number for pattern in patterns for number in re.findall(r"\d+", pattern)})


@lru_cache(maxsize=1024)
def find_uncovered(tensors: tuple[str, ...], rules: tuple[str, ...]) -> dict[str, str]:
    """Return, by pattern of `tensors`, the first name in model order that it selects and no pattern of `rules` does."""
    covering = _compile_any(rules)
    open_names = [name for name in sample_names(tensors + rules) if not covering(name)]
    found = {}
    for pattern in tensors if open_names else ():
        compiled = compile_pattern(pattern)
        name = next((name for name in open_names if compiled.fullmatch(name)), None)
        if name is not None:
            found[pattern] = name
    return found


@lru_cache(maxsize=64)
def _compile_any(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Return a function that tells whether any of `patterns` selects a name; of many, one expression is the fastest."""
    compiled = [compile_pattern(pattern) for pattern in patterns]
    if len(compiled) <= _FEW:
        return lambda name: any(pattern.fullmatch(name) for pattern in compiled)
    union = re.compile("|".join(f"(?:{pattern.pattern})" for pattern in compiled))
    return lambda name: union.fullmatch(name) is not None


@lru_cache(maxsize=1024)
def idle_patterns(tensors: tuple[str, ...], rules: tuple[str, ...]) -> tuple[tuple[str, str | None], ...]:
    """Return the patterns of `rules` that never come to bear.

    Returns:
        Pairs of a pattern and the earlier pattern that takes (the first of) its names away; None when `tensors`
        selects none of its names.
    """
    wanted = _compile_any(tensors)
    names = [name for name in sample_names(tensors + rules) if wanted(name)]
    known = frozenset(names)
    idle: list[tuple[str, str | None]] = []
    taken: dict[str, str] = {}
    for pattern in rules:
        compiled = compile_pattern(pattern)
        if "*" in pattern:
            mine = [name for name in names if compiled.fullmatch(name)]
        else:
            mine = [pattern] if pattern in known else []
        if not any(name not in taken for name in mine):
            idle.append((pattern, taken[mine[0]] if mine else None))
        for name in mine:
            taken.setdefault(name, pattern)
    return tuple(idle)


@lru_cache(maxsize=1024)
def needs_forward(tensors: tuple[str, ...]) -> bool:
    """Tell whether any pattern selects a tensor of the forward over the prompt."""
    wanted = _compile_any(tensors)
    return any(wanted(name) for name in sample_names(tensors) if not name.startswith(PASSES))


@lru_cache(maxsize=1024)
def needs_passes(tensors: tuple[str, ...]) -> bool:
    """Tell whether any pattern selects a tensor of a denoising pass."""
    wanted = _compile_any(tensors)
    return any(wanted(name) for name in sample_names(tensors) if name.startswith(PASSES))


def vocabulary(templates: Iterable[str] = TEMPLATES) -> list[str]:
    """Return the vocabulary as patterns, for help texts."""
    return [template.replace("{i}", "*") for template in templates]
