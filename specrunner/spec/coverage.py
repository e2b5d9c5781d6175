"""Which tensor names patterns select, judged before any model is loaded.

Layer numbers are not known yet, so patterns are tried on every name of the vocabulary at all layer numbers that could
tell them apart: those they mention, their continuations, and some that they do not mention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from specrunner.spec.tensor_names import TEMPLATES, compile_pattern, is_possible, model_order

_OTHER_NUMBER = "314159"
PASSES = "passes."


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


@lru_cache(maxsize=4096)
def can_match(pattern: str, templates: tuple[str, ...] = TEMPLATES) -> bool:
    """Tell whether `pattern` can select any name at all."""
    return is_possible(pattern, templates)


@lru_cache(maxsize=1024)
def first_uncovered(tensors: tuple[str, ...], rules: tuple[str, ...]) -> str | None:
    """Return the first name in model order that `tensors` selects and no pattern of `rules` does, or None."""
    wanted, covering = [compile_pattern(t) for t in tensors], [compile_pattern(r) for r in rules]
    for name in sample_names(tensors + rules):
        if any(w.fullmatch(name) for w in wanted) and not any(c.fullmatch(name) for c in covering):
            return name
    return None


@lru_cache(maxsize=1024)
def idle_patterns(tensors: tuple[str, ...], rules: tuple[str, ...]) -> tuple[tuple[str, str | None], ...]:
    """Return the patterns of `rules` that never come to bear.

    Returns:
        Pairs of a pattern and the earlier pattern that takes (the first of) its names away; None when `tensors`
        selects none of its names.
    """
    wanted = [compile_pattern(t) for t in tensors]
    names = [name for name in sample_names(tensors + rules) if any(w.fullmatch(name) for w in wanted)]
    idle: list[tuple[str, str | None]] = []
    taken: dict[str, str] = {}
    for pattern in rules:
        compiled = compile_pattern(pattern)
        mine = [name for name in names if compiled.fullmatch(name)]
        if not any(name not in taken for name in mine):
            idle.append((pattern, taken[mine[0]] if mine else None))
        for name in mine:
            taken.setdefault(name, pattern)
    return tuple(idle)


@lru_cache(maxsize=1024)
def needs_forward(tensors: tuple[str, ...]) -> bool:
    """Tell whether any pattern selects a tensor of the forward over the prompt."""
    return any(_selects(tensors, name) for name in sample_names(tensors) if not name.startswith(PASSES))


@lru_cache(maxsize=1024)
def needs_passes(tensors: tuple[str, ...]) -> bool:
    """Tell whether any pattern selects a tensor of a denoising pass."""
    return any(_selects(tensors, name) for name in sample_names(tensors) if name.startswith(PASSES))


def _selects(patterns: Iterable[str], name: str) -> bool:
    return any(compile_pattern(pattern).fullmatch(name) for pattern in patterns)


def vocabulary(templates: Iterable[str] = TEMPLATES) -> list[str]:
    """Return the vocabulary as patterns, for help texts."""
    return [template.replace("{i}", "*") for template in templates]
