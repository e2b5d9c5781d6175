"""Hostile documents: mutations of our own specs, random YAML, and noise; the same seed makes the same one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from specrunner.spec.merge import plain
from specrunner.spec.source import parse_bytes

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (ROOT / "specs", ROOT / "tests" / "specs" / "valid", ROOT / "tests" / "specs" / "invalid")
LONGEST = 64 << 10
"""Bytes of the longest document."""

SCALARS = (
    *("", "~", "null", "true", "on", "0", "-1", "017", "0x1f", "1e-3", "1e999", "-.inf", ".nan", "1.0", "9" * 399),
    *("9" * 500, "2001-12-14", "12:30:00", "1_000", "=", "*", "**", "*" * 50, "layers.*.output", "layers.**.**.**.**"),
    *("../../etc/passwd", "/etc/passwd", "a" * 5000, "\U0001f999", "e\u0301", "\u202e", "a/b", "a..b", "__main__"),
    *("torch.cuda.amp", "<script>", "]]>", "::error::", "%0A", "a,b=c", "[", "{", "!!python/name:os.system", "hf"),
    *("vllm", "oracle", "exact", "near_tie", "float16", "glass-0.8m", "tiny-llada2", "logits", "decode.max_new_tokens"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1.0, 0.5, 1e-3, 1e300, 10**18, 10**400, [], {}, "", [[]], [{}], {"": {}}),
    *({"exact": True}, {"logits": "exact"}, ["logits", "logits"], [0, 0.0, False], {"a": {"b": {"c": {}}}}),
    *([1, 2, 3, 2**70], {"dtype": ["float32", "float16"]}, {"*": {"noise_floor": 3}}, ["hf", "hf"], [*range(30)]),
)
NOISE = (
    "\t",
    " ",
    ": ",
    "- ",
    "? ",
    "&a ",
    "*a",
    "<<: ",
    "! ",
    "!!str ",
    "|",
    ">",
    "%",
    "@",
    "`",
    '"',
    "'",
    "#",
    "---",
)
NOISE += ("...", "{", "}", "[", "]", ",", "\n", "\r\n", "\x00", "\x85", "\u2028", "\ufeff", "\ud800", "\x1b[31m", "\\x")


class Maker:
    """Makes documents.

    Args:
        seeds: texts to begin with.
    """

    def __init__(self, seeds: list[bytes]) -> None:
        self._seeds = seeds
        self._weights = [1 / (300 + len(seed)) for seed in seeds]
        self._trees = [plain(root) for seed in seeds if isinstance(root := parse_bytes(seed, "x").root, dict)]
        self._tree_weights = [1 / (300 + len(repr(tree))) for tree in self._trees]
        self._keys: dict[str, list[Any]] = {}
        for tree in self._trees:
            for holder, key in walk(tree):
                if isinstance(holder, dict):
                    self._keys.setdefault(key, []).append(holder[key])
        self._names = sorted(self._keys)

    def make(self, chance: random.Random) -> tuple[str, bytes]:
        """Return a kind of document and one of it."""
        kind = chance.choices(("fields", "lines", "grammar", "bytes", "aliases"), (10, 4, 2, 4, 1))[0]
        if kind in ("fields", "aliases"):
            tree = json.loads(json.dumps(chance.choices(self._trees, self._tree_weights)[0]))
            changed = self.change(tree, chance)
            data = self.write(changed, chance) if kind == "fields" else self.write_multiplied(changed, chance)
        elif kind == "lines":
            data = self.shuffle_lines(self.pick(chance), chance)
        elif kind == "grammar":
            data = grow(chance).encode("utf-8", "surrogatepass")
        else:
            data = disturb(self.pick(chance) if chance.random() < 0.8 else chance.randbytes(200), chance)
        return kind, data[:LONGEST]

    def pick(self, chance: random.Random) -> bytes:
        """Return a seed, a short one more often than a long one."""
        return chance.choices(self._seeds, self._weights)[0]

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        """Return a changed document, by its fields where it is YAML."""
        root = parse_bytes(data, "x").root if chance.random() < 0.6 else None
        if isinstance(root, dict):
            return self.write(self.change(plain(root), chance), chance)[:LONGEST]
        return (self.shuffle_lines if chance.random() < 0.5 else disturb)(data, chance)[:LONGEST]

    def change(self, tree: dict[str, Any], chance: random.Random) -> dict[str, Any]:
        """Change some fields of a spec: their values, their names, their places; or borrow a case from another."""
        if chance.random() < 0.3 and isinstance(tree.get("cases"), list):
            other = json.loads(json.dumps(chance.choices(self._trees, self._tree_weights)[0]))
            theirs = other.pop("cases", None)
            case = chance.choice(theirs) if isinstance(theirs, list) and theirs else None
            if isinstance(case, dict):
                for name in ("version", "defaults"):
                    other.pop(name, None)
                tree["cases"].append({**other, **case, "name": f"borrowed-{chance.randrange(3)}"})
                if chance.random() < 0.5:
                    return tree
        for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
            places = list(walk(tree))
            if not places:
                return tree
            holder, key = chance.choice(places)
            action = chance.choice((0, 1, 2, 3, 4, 5, 7, *(6,) * 9))
            if action == 0:
                del holder[key]
            elif action == 1:
                holder[key] = json.loads(json.dumps(chance.choice(VALUES)))
            elif action == 2:
                holder[key] = chance.choice(SCALARS)
            elif action == 3 and isinstance(holder, dict):
                holder[chance.choice(self._names if chance.random() < 0.8 else SCALARS)] = holder.pop(key)
            elif action == 4 and isinstance(holder[key], dict):
                name = chance.choice(self._names)
                holder[key][name] = json.loads(json.dumps(chance.choice(self._keys[name])))
            elif action == 5 and isinstance(holder[key], list) and holder[key]:
                holder[key] += json.loads(json.dumps([chance.choice(holder[key])])) * chance.choice((1, 2, 40))
            elif action == 6 and isinstance(holder, dict) and key in self._keys:
                holder[key] = json.loads(json.dumps(chance.choice(self._keys[key])))
            elif action == 7:
                holder[key] = chance.choice(([holder[key]], {chance.choice(self._names): holder[key]}))
        return tree

    def write_multiplied(self, tree: dict[str, Any], chance: random.Random) -> bytes:
        """Write a spec in which one of its values stands for tens to hundreds of thousands, by aliases of aliases."""
        places = list(walk(tree))
        if not places:
            return self.write(tree, chance)
        holder, key = chance.choice(places)
        value = holder[key] if isinstance(holder[key], dict | list) else [holder[key]]
        for times in chance.choice(((30,), (300,), (3000,), (40, 40), (30, 30, 30), (9,) * 5, (2,) * 15)):
            if chance.random() < 0.5:
                value = [value] * times
            else:
                names = chance.choices(self._names, k=times) if chance.random() < 0.5 else map(str, range(times))
                value = dict.fromkeys(names, value)
        holder[key] = value
        for other, name in places if chance.random() < 0.2 else ():
            if name == key:
                other[name] = value
        return write_blocks(tree)

    @staticmethod
    def write(tree: Any, chance: random.Random) -> bytes:
        """Write a tree as JSON, which is YAML, or in block style."""
        if chance.random() < 0.5:
            return json.dumps(tree, ensure_ascii=chance.random() < 0.5, indent=chance.choice((None, 1))).encode(
                "utf-8", "surrogatepass"
            )
        return write_blocks(tree)

    def shuffle_lines(self, data: bytes, chance: random.Random) -> bytes:
        """Repeat, drop, indent, exchange and borrow lines."""
        lines = data.split(b"\n")
        for _ in range(chance.choice((1, 1, 2, 4))):
            at, other = chance.randrange(len(lines)), self.pick(chance).split(b"\n")
            action = chance.randrange(6)
            if action == 0:
                lines[at:at] = lines[at : at + chance.randrange(1, 9)]
            elif action == 1 and len(lines) > 1:
                del lines[at]
            elif action == 2:
                lines[at] = b" " * chance.randrange(1, 5) + lines[at]
            elif action == 3:
                lines[at] = lines[at][1:]
            elif action == 4:
                lines[at] = chance.choice(other)
            else:
                start = chance.randrange(len(other))
                lines[at:at] = other[start : start + chance.randrange(1, 12)]
        return b"\n".join(lines)


def write_blocks(tree: Any) -> bytes:
    """Write a tree in block style; a container that stands in several places is written once, and then as aliases."""
    text: str = yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=10**6)
    return text.encode("utf-8", "surrogatepass")


def walk(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a tree: the container, and the key or the index."""
    stack = [tree]
    while stack:
        holder = stack.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            if isinstance(holder[key], dict | list):
                stack.append(holder[key])


def disturb(data: bytes, chance: random.Random) -> bytes:
    """Change, drop, insert and repeat bytes."""
    noise = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(noise) + 1)
        action = chance.randrange(6)
        if action == 0 and noise:
            noise[at % len(noise)] = chance.randrange(256)
        elif action == 1:
            del noise[at : at + chance.randrange(1, 20)]
        elif action == 2:
            noise[at:at] = chance.choice((*NOISE, *SCALARS)).encode("utf-8", "surrogatepass")
        elif action == 3:
            noise[at:at] = noise[at : at + chance.randrange(1, 60)] * chance.choice((1, 2, 50))
        elif action == 4:
            del noise[at:]
        else:
            noise[at:at] = chance.randbytes(chance.randrange(1, 8))
    return bytes(noise)


def grow(chance: random.Random, depth: int = 0) -> str:
    """Return random YAML: block and flow style, anchors, aliases, tags and every kind of scalar."""
    pad = "  " * depth
    mark = chance.choice(("", "", "", "", "&a ", "&b ", "!!str ", "!!map ", "! ", "!x "))
    kind = chance.randrange(8 if depth < 5 else 4)
    if kind == 0:
        return mark + chance.choice(SCALARS) + "\n"
    if kind == 1:
        return chance.choice(
            ("*a\n", "*b\n", "|\n" + pad + "  text\n", ">-\n" + pad + "  text\n", '"\\u0000\\ud800"\n')
        )
    if kind == 2:
        return mark + json.dumps(chance.choice(VALUES)) + "\n"
    if kind == 3:
        return mark + "".join(chance.choice((*NOISE, "a", "b", "1")) for _ in range(chance.randrange(12))) + "\n"
    if kind in (4, 5):
        return mark + "\n" + "".join(f"{pad}- {grow(chance, depth + 1)}" for _ in range(chance.randrange(1, 4)))
    words = (*SCALARS[:12], "version", "cases", "name", "model", "engines", "matrix", "tolerance", "prompt", "defaults")
    return mark + "\n" + "".join(f"{pad}{chance.choice(words)}: {grow(chance, depth + 1)}" for _ in range(3))


def read_seeds() -> list[bytes]:
    """Return our own specs and the examples of the tests."""
    return [file.read_bytes() for folder in SEEDS for file in sorted(folder.rglob("*.yaml"))]


@cache
def maker() -> Maker:
    """Return the maker that begins with our own specs; they are read once."""
    return Maker(read_seeds())
