"""Merging the fields of a case: `defaults` < the spec's top level < the case < what the matrix chose.

Mappings merge key by key; everything else is replaced. Three fields hold keys that rule each other out, so one that
names its kind replaces the whole: `model` (id, path, recipe), `prompt` (text, messages, token_ids) and `reference`
(engine). `tags` add up, axes of `matrix` replace each other one by one, and a case's `tolerance` patterns come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specrunner.spec.model import Location
from specrunner.spec.source import Source
from specrunner.spec.syntax import Span
from specrunner.spec.tree import Map

Fields = dict[str, Any]
Path = tuple[str | int, ...]

_KINDS = {
    "model": ("id", "path", "recipe"),
    "prompt": ("text", "messages", "token_ids"),
    "reference": ("engine",),
}
_WHOLE = frozenset(("xfail",))


def merge_fields(base: Mapping[str, Any], over: Mapping[str, Any]) -> Fields:
    """Return the fields of `base` with those of `over` laid on top; neither is changed."""
    merged = dict(base)
    for name, value in over.items():
        if name == "prompt" and isinstance(value, str):
            value = {"text": value}
        below = merged.get(name)
        if name == "tags" and below:
            merged[name] = list(dict.fromkeys((*below, *value)))
        elif not isinstance(below, dict) or not isinstance(value, dict) or _replaces(name, value):
            merged[name] = value
        elif name == "tolerance":
            merged[name] = {**value, **{pattern: rules for pattern, rules in below.items() if pattern not in value}}
        elif name == "matrix":
            merged[name] = {**below, **value}
        else:
            merged[name] = _merge_deep(below, value)
    return merged


def _replaces(name: str, value: Mapping[str, Any]) -> bool:
    """Tell whether a mapping takes the place of the one below it instead of being merged with it."""
    return name in _WHOLE or any(kind in value for kind in _KINDS.get(name, ()))


def _merge_deep(base: Mapping[str, Any], over: Mapping[str, Any]) -> Fields:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge_deep(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def plain(value: Any) -> Any:
    """Return tree values as plain dicts and lists, owned by the caller."""
    if isinstance(value, dict):
        return {key: plain(item) if isinstance(item, dict | list) else item for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) if isinstance(item, dict | list) else item for item in value]
    return value


def is_larger(value: Any, most: int) -> bool:
    """Tell whether a tree value holds more than so many values, a thousand characters counting as one.

    What aliases put in several places counts in each; looking ends with the one that is too many.
    """
    held, left = 0, [value]
    while left and held <= most:
        item = left.pop()
        held += 1 + (len(item) // 1000 if isinstance(item, str) else 0)
        if isinstance(item, dict):
            left += item.values()
        elif isinstance(item, list):
            left += item
    return held > most


def span_at(root: Any, path: Path, at_key: bool = False) -> tuple[Span, int]:
    """Return the span of what `path` leads to, and how many steps of it exist.

    Args:
        root: a tree.
        path: keys and indices.
        at_key: point at the last key rather than its value. A block collection is always pointed at by its key.
    """
    span: Span = getattr(root, "span", (0, 1))
    node = root
    for depth, step in enumerate(path):
        if isinstance(node, Map) and step in node.keys_at:
            name = str(step)
            value_span, value = node.values_at[name], node[name]
            is_block = isinstance(value, dict | list) and value_span[0] == value_span[1]
            by_key = (at_key and depth == len(path) - 1) or is_block
            span, node = node.keys_at[name] if by_key else value_span, value
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            spans = getattr(node, "items_at", None)
            value = node[step]
            span = spans[step] if spans else span
            if isinstance(value, Map) and value.keys_at and (span[0] == span[1] or depth < len(path) - 1):
                span = next(iter(value.keys_at.values()))
            node = value
        else:
            return span, depth
    return span, len(path)


@dataclass(frozen=True, slots=True)
class Layers:
    """Where the fields of one expanded case were written.

    Attributes:
        source: the file.
        maps: the mappings its fields came from, strongest first.
        entry: the case's own mapping under `cases`.
    """

    source: Source
    maps: Sequence[Map]
    entry: Map

    def span(self, *path: str | int, at_key: bool = False) -> Span:
        """Return the span of the strongest writing of a field; the case's own when nobody wrote it."""
        best, best_depth = self.name_span(), 0
        for layer in self.maps:
            span, depth = span_at(layer, path, at_key)
            if depth > best_depth:
                best, best_depth = span, depth
            if depth == len(path):
                break
        return best

    def name_span(self) -> Span:
        """Return the span of the case's name."""
        return self.entry.values_at.get("name", self.entry.span)

    def location(self, *path: str | int, at_key: bool = False) -> Location:
        """Return the place of the strongest writing of a field."""
        return self.source.locate(self.span(*path, at_key=at_key)[0])

    def owner(self, *path: str) -> Map | None:
        """Return the strongest mapping in which a field was written, or None."""
        for layer in self.maps:
            node: Any = layer
            for step in path:
                node = node.get(step) if isinstance(node, dict) else None
            if node is not None:
                return layer
        return None


class Marks(Mapping[str, Location]):
    """The locations of a case's fields, by dotted name (`reference.dtype`), worked out when asked for.

    Names that nobody wrote are located at the nearest enclosing field that somebody did, in the end at the case.
    """

    __slots__ = ("_layers",)

    def __init__(self, layers: Layers) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> Location:
        return self._layers.location(*name.split("."))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for layer in self._layers.maps for name in layer))

    def __contains__(self, name: object) -> bool:
        return any(name in layer for layer in self._layers.maps)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Marks:
        return self

    def span(self, *path: str | int, at_key: bool = False) -> Span:
        """Return where a field stands in the text of `source`."""
        return self._layers.span(*path, at_key=at_key)

    def are_written(self, *path: str) -> bool:
        """Tell whether somebody wrote a field."""
        return self._layers.owner(*path) is not None

    @property
    def source(self) -> Source:
        """The case's file."""
        return self._layers.source
