"""The vocabulary of tensor names (DESIGN section 5): patterns, and the order in which a model computes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

TENSORS: Mapping[str, tuple[str, str]] = {
    "embeddings": ("[tokens, hidden]", "of the tokens, scaled where the model scales them"),
    "layers.{i}.attention.query": ("[tokens, heads * head_dim]", "what enters RoPE: after a per-head norm"),
    "layers.{i}.attention.key": ("[tokens, kv_heads * head_dim]", "what enters RoPE: after a per-head norm"),
    "layers.{i}.attention.value": ("[tokens, kv_heads * head_dim]", "the values that attention adds up"),
    "layers.{i}.attention.output": (
        "[tokens, hidden]",
        "after the output projection (and a norm behind it), before the residual is added",
    ),
    "layers.{i}.router.logits": ("[tokens, experts]", "the router's, before any score function"),
    "layers.{i}.router.expert_ids": ("[tokens, experts per token]", "int64, ascending within a token"),
    "layers.{i}.router.expert_weights": (
        "[tokens, experts per token]",
        "in the order of `expert_ids`, normalised and scaled",
    ),
    "layers.{i}.mlp.output": (
        "[tokens, hidden]",
        "of the MLP or the experts (and a norm behind it), before the residual is added",
    ),
    "layers.{i}.output": ("[tokens, hidden]", "the residual stream after layer i"),
    "final_norm": ("[tokens, hidden]", "after the norm behind the last layer"),
    "logits": ("[tokens, vocabulary]", "of each token of the input"),
    "passes.{i}.logits": ("[block_length, vocabulary]", "of the current block at denoising pass i of a decode"),
}
"""Shape and meaning of every name a capture may hold, in model order; `{i}` is a number from 0."""

TEMPLATES: tuple[str, ...] = tuple(TENSORS)
"""Every name a capture may hold, in model order."""

PASSES = "passes."
"""How the names begin that a decode alone has."""

EXPERT_IDS = "layers.{i}.router.expert_ids"
"""The one whose values are integers."""

ROUTER_BIAS = "layers.{i}.router.expert_bias"
"""A constant that comes with a reference's router logits: [experts], added to the scores for the choice alone. It is
evidence for the rule `routing`, not a tensor of the vocabulary: no pattern selects it."""


def is_auxiliary(name: str) -> bool:
    """Tell whether `name` was captured beside the tensors of the vocabulary: a weight, or for a special request."""
    return name.endswith(".router.expert_bias") or name.startswith(("steps.", "probe."))


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a tensor pattern: `*` stands for any part of one dotted segment, `**` for any run of segments."""
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.compile("".join({"**": ".+", "*": "[^.]*"}.get(part) or re.escape(part) for part in parts))


def match_name(pattern: str, name: str) -> bool:
    """Tell whether `pattern` selects the tensor `name`."""
    return compile_pattern(pattern).fullmatch(name) is not None


def select_names(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return those of `names` that at least one of `patterns` selects, in model order."""
    compiled = [compile_pattern(pattern) for pattern in patterns]
    return sorted(
        (name for name in names if not is_auxiliary(name) and any(c.fullmatch(name) for c in compiled)), key=model_order
    )


@lru_cache(maxsize=4096)
def is_possible(pattern: str, templates: tuple[str, ...] = TEMPLATES) -> bool:
    """Tell whether any name of the vocabulary, at any layer number, could match `pattern`."""
    numbers = {"0", "1"} | set(re.findall(r"\d+", pattern))
    numbers |= {stem + digit for stem in set(numbers) for digit in "0123456789"} | set("0123456789")
    compiled = compile_pattern(pattern)
    return any(
        compiled.fullmatch(template.replace("{i}", number))
        for template in templates
        for number in (numbers if "{i}" in template else ("",))
    )


def advise_unmatched(pattern: str, names: Iterable[str]) -> str:
    """Say what a model has instead of the tensors that a pattern asks for and it lacks.

    Args:
        pattern: selects none of `names`.
        names: of all tensors that the model has.
    """
    there = sorted(names, key=model_order)
    elsewhere = [name for name in there if match_name(_NUMBER.sub(".*", pattern), name)]
    if elsewhere:
        return f"it has `{elsewhere[0]}`" + (f" to `{elsewhere[-1]}`" if len(elsewhere) > 1 else "")
    return "it has " + (
        ", ".join(f"`{name}`" for name in dict.fromkeys(_NUMBER.sub(".*", name) for name in there)) or "none"
    )


_NUMBER = re.compile(r"\.\d+(?=\.)")

_RANK = {template: rank for rank, template in enumerate(TEMPLATES)}


def model_order(name: str) -> tuple[int, int, int]:
    """Sort key: embeddings first, then layer by layer, then final norm and logits, then denoising passes."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    template = re.sub(r"(?<=\.)\d+(?=\.)", "{i}", name, count=1)
    rank = _RANK.get(template, len(TEMPLATES))
    if name.startswith("layers.") and number:
        return (1, int(number.group()), rank)
    if number:
        return (3, int(number.group()), rank)
    return (0 if rank == 0 else 2, 0, rank)
