"""YAML text as a tree of plain values that remember where they stand.

Built in one loop over libyaml's events (no recursion, no resolver and no constructor of PyYAML's), so hostile text can
neither exhaust the stack nor run code. Mappings are `Map`, lists are `Seq`; scalars are plain Python values, and their
positions live in the container that holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from yaml import events as ev

from specrunner.spec.diagnostics import accepted_values
from specrunner.spec.scalars import is_core_tag, resolve_plain, resolve_tagged
from specrunner.spec.syntax import Problem, Span, explain_syntax

MAX_DEPTH = 64
"""Containers inside containers, aliases followed."""
MAX_ALIASES = 20_000
MAX_NODES = 1_000_000
"""Values in one file, each alias counted as all that it stands for."""
MAX_KEYS = 1000
"""Keys of one mapping: what merges mappings and looks for near words takes a time that grows with them."""
MAX_PROBLEMS = 200
"""Problems of a text after which it is not read on."""


class Map(dict[str, Any]):
    """A mapping with the span of every key and value.

    Attributes:
        span: where the mapping stands; empty, at its first character, when it is written in block style.
        keys_at: span of each key.
        values_at: span of each value.
    """

    __slots__ = ("keys_at", "span", "values_at")

    def __init__(self, span: Span) -> None:
        super().__init__()
        self.span = span
        self.keys_at: dict[str, Span] = {}
        self.values_at: dict[str, Span] = {}

    def __repr__(self) -> str:
        """Return a few words: it may stand for a million values by aliases, and jsonschema shows what it refuses."""
        return f"<mapping of {len(self)}>"


class Seq(list[Any]):
    """A list with the span of every item."""

    __slots__ = ("items_at", "span")

    def __init__(self, span: Span) -> None:
        super().__init__()
        self.span = span
        self.items_at: list[Span] = []

    def __repr__(self) -> str:
        """Return a few words, as a `Map` does."""
        return f"<list of {len(self)}>"


@dataclass(frozen=True, slots=True)
class Tree:
    """What `build_tree` made of a text.

    Attributes:
        root: the document's value; None when there is none or the text is too broken to go on.
        problems: everything found.
        complete: whether the whole text was read.
        odd_numbers: spans of the numbers that are not finite.
    """

    root: Any
    problems: tuple[Problem, ...]
    complete: bool
    odd_numbers: tuple[Span, ...] = ()


class _Stop(Exception):
    """Reading cannot go on."""


_REFUSED_KEYS = {
    "<<": (
        "merge-key",
        "merge keys (`<<`) are not part of YAML 1.2",
        "put shared fields under `defaults`, or repeat a whole value with an alias (`key: *anchor`)",
    ),
    "": ("empty-key", "a key is empty", "write the key before the colon"),
}
"""Keys that mean something else, or nothing, when they are not quoted."""
_COMPLEX_KEY = object()
"""Stands for a key that cannot be used; its value is read and dropped."""


class _PureParser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    """PyYAML's own parser, for installations without libyaml."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)


def new_parser(text: str) -> Any:
    """Return the fastest parser there is; its `get_event` gives the next event."""
    if yaml.__with_libyaml__:
        return yaml.cyaml.CParser(text)  # type: ignore[attr-defined]
    return _PureParser(text)


@dataclass(slots=True)
class _Anchor:
    """What an anchor stands for; open until its end has been read."""

    value: Any
    nodes: int
    height: int = 0
    is_open: bool = True


@dataclass(slots=True)
class _Frame:
    """A container that is being read."""

    container: Any
    is_map: bool
    start_nodes: int
    anchor: str | None
    is_key: bool
    is_flow: bool
    key: Any = None
    key_span: Span = (0, 0)
    height: int = 1


class _Builder:
    """The loop's state."""

    def __init__(self) -> None:
        self.root: Any = None
        self.problems: list[Problem] = []
        self.odd_numbers: list[Span] = []
        self._frames: list[_Frame] = []
        self._anchors: dict[str, _Anchor] = {}
        self._plain: dict[str, Any] = {}
        self._nodes = 0
        self._aliases = 0
        self._documents = 0

    def read(self, get_event: Callable[[], Any]) -> None:
        """Take events until the stream ends."""
        scalar, alias = ev.ScalarEvent, ev.AliasEvent
        map_start, seq_start, map_end, seq_end = (
            ev.MappingStartEvent,
            ev.SequenceStartEvent,
            ev.MappingEndEvent,
            ev.SequenceEndEvent,
        )
        frames, plain = self._frames, self._plain
        while True:
            event = get_event()
            kind = type(event)
            if kind is scalar:
                frame = frames[-1] if frames else None
                if frame is None or event.anchor is not None or event.tag is not None:
                    self._take_marked_scalar(frame, event)
                elif frame.is_map and frame.key is None:
                    self._take_key(frame, event)
                else:
                    text = event.value
                    if event.implicit[0]:
                        value = plain.get(text, self)
                        if value is self:
                            value = self._resolve(text, _span(event))
                    else:
                        value = text
                    self._put(frame, value, (event.start_mark.index, event.end_mark.index))
            elif kind is map_start or kind is seq_start:
                self._open(event, kind is map_start)
            elif kind is map_end or kind is seq_end:
                self._close(event)
            elif kind is alias:
                self._take_alias(event)
            elif kind is ev.DocumentStartEvent:
                self._start_document(event)
            elif event is None or kind is ev.StreamEndEvent:
                return

    def _report(
        self, code: str, message: str, span: Span, help: str | None = None, related: tuple[str, Span] | None = None
    ) -> None:
        self.problems.append(Problem(code, message, span, help, related))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Stop

    def _stop(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self._report(code, message, span, help)
        raise _Stop

    def _start_document(self, event: Any) -> None:
        span = _span(event)
        self._documents += 1
        if self._documents > 1:
            self._stop("many-documents", "a spec is one document", span, "put each document into a file of its own")
        if event.version is not None and event.version != (1, 2):
            version = ".".join(map(str, event.version))
            self._report("yaml-version", f"specs are YAML 1.2, not {version}", span, "remove the `%YAML` line")

    def _count(self, nodes: int, span: Span) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            message = f"more than {MAX_NODES:,} values, aliases expanded"
            self._stop("too-large", message, span, "split the spec into several files")

    def _take_marked_scalar(self, frame: _Frame | None, event: Any) -> None:
        """Take a scalar with an anchor or a tag, or one that is the whole document."""
        span, text, tag = _span(event), event.value, event.tag
        is_key = frame is not None and frame.is_map and frame.key is None
        if is_key:
            if tag is not None and not is_core_tag(tag, "str"):
                self._report("yaml-tag", f"tag `{tag}` on a key", span, "remove it: every key is a string")
            value = text
        elif tag is not None:
            value = self._resolve_tag(text, tag, span)
        else:
            value = self._resolve(text, span) if event.implicit[0] else text
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchor(value, 1, 0, is_open=False)
        if frame is None:
            self.root = value
        elif is_key:
            self._take_key(frame, event)
        else:
            self._put(frame, value, span)

    def _take_key(self, frame: _Frame, event: Any) -> None:
        text = event.value
        if len(frame.container) >= MAX_KEYS:
            self._stop("too-large", f"a mapping of more than {MAX_KEYS:,} keys", _span(event))
        frame.key = text
        frame.key_span = (event.start_mark.index, event.end_mark.index)
        if text in _REFUSED_KEYS and event.implicit[0]:
            code, message, advice = _REFUSED_KEYS[text]
            self._report(code, message, frame.key_span, advice)
            frame.key = _COMPLEX_KEY

    def _resolve(self, text: str, span: Span) -> Any:
        try:
            value = resolve_plain(text)
        except ValueError as error:
            self._report("bad-number", str(error), span, "quote it if it is text")
            value = None
        self._plain[text] = value
        return value

    def _resolve_tag(self, text: str, tag: str, span: Span) -> Any:
        try:
            return resolve_tagged(text, tag)
        except ValueError as error:
            self._report_tag(tag, span, str(error))
            return text

    def _report_tag(self, tag: str, span: Span, reason: str) -> None:
        short = tag.replace("tag:yaml.org,2002:", "!!")
        self._report("yaml-tag", f"tag `{short}`: {reason}", span, "remove the tag: specs hold plain values only")

    def _open(self, event: Any, is_map: bool) -> None:
        span = _span(event)
        if event.tag is not None and event.tag != "!" and not is_core_tag(event.tag, "map" if is_map else "seq"):
            self._report_tag(event.tag, span, "no objects are constructed")
        frame = self._frames[-1] if self._frames else None
        is_key = frame is not None and frame.is_map and frame.key is None
        if is_key:
            self._report("complex-key", "a key must be a single value", span, "quote it if it is text")
        if len(self._frames) >= MAX_DEPTH:
            self._stop("too-deep", f"nested more than {MAX_DEPTH} deep", span)
        container = Map(span) if is_map else Seq(span)
        self._frames.append(_Frame(container, is_map, self._nodes, event.anchor, is_key, event.flow_style))
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchor(container, 0)

    def _close(self, event: Any) -> None:
        frame = self._frames.pop()
        if frame.is_flow:
            frame.container.span = (frame.container.span[0], event.end_mark.index)
        if frame.anchor is not None:
            anchor = self._anchors[frame.anchor]
            if anchor.value is frame.container:
                anchor.nodes, anchor.height, anchor.is_open = self._nodes - frame.start_nodes + 1, frame.height, False
        if not self._frames:
            self.root = frame.container
            return
        parent = self._frames[-1]
        parent.height = max(parent.height, frame.height + 1)
        if frame.is_key:
            parent.key, parent.key_span = _COMPLEX_KEY, frame.container.span
        else:
            self._put(parent, frame.container, frame.container.span)

    def _take_alias(self, event: Any) -> None:
        span = _span(event)
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            self._stop("too-many-aliases", f"more than {MAX_ALIASES:,} aliases", span)
        anchor = self._anchors.get(event.anchor)
        frame = self._frames[-1] if self._frames else None
        if anchor is None:
            known = accepted_values(event.anchor, list(self._anchors), "anchors")
            self._report("unknown-anchor", f"no anchor `&{event.anchor}` before this alias", span, known)
            anchor = _Anchor(None, 1, 0, is_open=False)
        elif anchor.is_open:
            self._stop("recursive-alias", f"`*{event.anchor}` stands inside the value that it names", span)
        self._count(anchor.nodes - 1, span)
        if len(self._frames) + anchor.height > MAX_DEPTH:
            self._stop("too-deep", f"nested more than {MAX_DEPTH} deep, aliases expanded", span)
        if frame is None:
            self.root = anchor.value
        elif frame.is_map and frame.key is None:
            self._report("complex-key", "a key cannot be an alias", span, "write the key out")
            frame.key, frame.key_span = _COMPLEX_KEY, span
        else:
            frame.height = max(frame.height, anchor.height + 1)
            self._put(frame, anchor.value, span)

    def _put(self, frame: _Frame, value: Any, span: Span) -> None:
        """Add a value to the container that is being read."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._count(0, span)
        if value.__class__ is float and value - value != 0:  # infinite, or not a number
            self.odd_numbers.append(span)
        container = frame.container
        if not frame.is_map:
            container.append(value)
            container.items_at.append(span)
            return
        key = frame.key
        frame.key = None
        if key in container:
            first = ("first given", container.keys_at[key])
            self._report("duplicate-key", f"key `{key}` is given twice", frame.key_span, "keep one of the two", first)
        elif key is not _COMPLEX_KEY:
            container[key] = value
            container.keys_at[key] = frame.key_span
            container.values_at[key] = span


def _span(event: Any) -> Span:
    return event.start_mark.index, event.end_mark.index


def build_tree(text: str) -> Tree:
    """Read one YAML document.

    Args:
        text: free of the characters that YAML forbids (`source.py` sees to that).

    Returns:
        The tree with every problem found; nothing is raised for bad text.
    """
    builder = _Builder()
    try:
        builder.read(new_parser(text).get_event)
    except _Stop:
        return Tree(None, tuple(builder.problems), complete=False)
    except yaml.YAMLError as error:
        return Tree(None, (*builder.problems, explain_syntax(error, text)), complete=False)
    return Tree(builder.root, tuple(builder.problems), complete=True, odd_numbers=tuple(builder.odd_numbers))
