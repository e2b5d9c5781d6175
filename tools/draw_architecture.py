"""Write the pictures in docs/architecture.md: the modules on the way of the data, the floors, and who imports whom.

python tools/draw_architecture.py            write it
python tools/draw_architecture.py --check    exit 1 if it is out of date
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "specrunner"
TARGET = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"

FLOORS = (
    ("words", "token_ids"),
    ("errors", "folders", "secrets", "devices", "interrupts"),
    ("files",),
    ("config", "catalogue", "faults", "benchmark_record"),
    ("spec",),
    ("requests", "results"),
    ("models",),
    ("engines",),
    ("environments",),
    ("plan",),
    ("events", "machine"),
    ("sessions", "reporters"),
    ("benchmarks", "checks", "arrangement"),
    ("golden", "calibration", "judging", "diagnoser", "comparing"),
    ("cache",),
    ("runner",),
    ("launch",),
    ("proof",),
    ("cli",),
    ("testing",),
    ("pytest_plugin", "__main__"),
)
"""Packages, and modules that are in none, from the ground up: each imports from lower floors alone, also inside of
functions. The package's own face, `import specrunner`, hands out names of every floor and is on none."""

WAY = (
    *(
        "cli.run",
        "spec.loader",
        "spec.model",
        "requests",
        "plan.build",
        "plan.model",
        "runner",
        "judging",
        "sessions.pool",
        "sessions.threads",
        "sessions.serving",
        "sessions.worker",
    ),
    *("sessions.captures", "engines.base", "engines.hf.adapter", "engines.vllm.adapter", "engines.sglang.adapter"),
    *("engines.oracle", "checks.evidence", "checks.tensors", "checks.rules", "results", "events", "reporters.record"),
    *("reporters.terminal", "reporters.junit", "reporters.json", "reporters.html", "golden.store", "testing"),
)
"""The modules that a case comes through, from the spec's text to the reports."""


def read_modules() -> dict[str, Path]:
    """Return the file of every module of the package, by the name below it: `engines.base`, for a package `engines`."""
    modules = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        *folders, name = file.relative_to(PACKAGE).with_suffix("").parts
        modules[".".join(folders if name == "__init__" else [*folders, name])] = file
    del modules[""]
    return modules


def find_all_edges() -> dict[str, set[str]]:
    """Return, for each module, those that it imports, also inside of functions."""
    modules = read_modules()
    edges = {}
    for module, file in modules.items():
        found = {name.removeprefix("specrunner.") for name in find_imports(ast.parse(file.read_text(encoding="utf-8")))}
        edges[module] = (found & set(modules)) - {module}
    return edges


def join_edges(edges: dict[str, set[str]], rooms: Iterable[str]) -> dict[str, set[str]]:
    """Return the edges between rooms: packages with all that is in them, or modules."""
    rooms = set(rooms)

    def room_of(module: str) -> str | None:
        parts = module.split(".")
        return next((room for end in range(len(parts), 0, -1) if (room := ".".join(parts[:end])) in rooms), None)

    joined: dict[str, set[str]] = {room: set() for room in rooms}
    for module, targets in edges.items():
        room = room_of(module)
        if room is not None:
            joined[room] |= {other for target in targets if (other := room_of(target)) not in (None, room)}
    return joined


def find_imports(node: ast.AST) -> Iterator[str]:
    """Yield the modules imported below `node`, but for those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            whole = child.module == "specrunner"
            # A name below the package is a module or what a module holds: both are asked for, and one is known.
            yield from [f"{child.module}.{alias.name}" for alias in child.names]
            yield from () if whole else (child.module,)
        yield from find_imports(child)


def thin_edges(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out every arrow that a longer way already draws."""

    def reach(start: str, without: str) -> set[str]:
        seen: set[str] = set()
        waiting = [target for target in edges[start] if target != without]
        while waiting:
            part = waiting.pop()
            if part not in seen and part != start:
                seen.add(part)
                waiting += edges[part]
        return seen

    return {
        part: {target for target in targets if target not in reach(part, target)} for part, targets in edges.items()
    }


def draw_way() -> str:
    """Return the modules on the way as a Mermaid diagram, one box a package."""
    edges = thin_edges(join_edges(find_all_edges(), WAY))
    lines = ["```mermaid", "flowchart LR"]
    packages: dict[str, list[str]] = {}
    for module in WAY:
        packages.setdefault(module.partition(".")[0], []).append(module)
    for package, modules in packages.items():
        inside = [f'{module.replace(".", "_")}["{module.partition(".")[2] or module}"]' for module in modules]
        alone = modules == [package]
        lines += (
            [f"    {inside[0]}"]
            if alone
            else [f"    subgraph {package}", *(f"        {one}" for one in inside), "    end"]
        )
    names = [(one.replace(".", "_"), other.replace(".", "_")) for one in WAY for other in sorted(edges[one])]
    return "\n".join([*lines, *(f"    {one} --> {other}" for one, other in names), "```"])


def draw_floors() -> str:
    """Return the packages as a Mermaid diagram, from the ground up."""
    rooms = [room for floor in FLOORS for room in floor]
    edges = thin_edges(join_edges(find_all_edges(), rooms))
    lines = [f"    {one} --> {other}" for one in rooms for other in sorted(edges[one], key=rooms.index)]
    return "\n".join(["```mermaid", "flowchart TB", *reversed(lines), "```"])


def main() -> int:
    """Write or check the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when the picture is out of date")
    options = parser.parse_args()
    text = TARGET.read_text(encoding="utf-8")
    wanted = text
    for name, picture in {"imports": draw_way(), "floors": draw_floors()}.items():
        begin, end = BEGIN.format(name), END.format(name)
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", flags=re.DOTALL)
        wanted = pattern.sub(lambda _, whole=f"{begin}\n{picture}\n{end}": whole, wanted)
    if options.check:
        if text != wanted:
            print("docs/architecture.md is out of date: run python tools/draw_architecture.py", file=sys.stderr)
        return int(text != wanted)
    TARGET.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
