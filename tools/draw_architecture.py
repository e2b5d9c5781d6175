"""Write the picture in docs/architecture.md: the modules on the way of the data, and which imports which.

python tools/draw_architecture.py            write it
python tools/draw_architecture.py --check    exit 1 if it is out of date
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "specrunner"
TARGET = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- imports: begin -->", "<!-- imports: end -->"

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


def find_edges() -> dict[str, set[str]]:
    """Return, for each module on the way, those on the way that it imports, also inside of functions.

    Raises:
        FileNotFoundError: a module of `WAY` is no more.
    """
    edges = {}
    for module in WAY:
        path = PACKAGE.joinpath(*module.split("."))
        sources = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        trees = [ast.parse(source.read_text(encoding="utf-8")) for source in sources]
        found = {name.removeprefix("specrunner.") for tree in trees for name in find_imports(tree)}
        edges[module] = (found & set(WAY)) - {module}
    return edges


def find_imports(node: ast.AST) -> Iterator[str]:
    """Yield the modules imported below `node`, but for those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            whole = child.module == "specrunner"
            yield from [f"specrunner.{alias.name}" for alias in child.names] if whole else [child.module]
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


def draw() -> str:
    """Return the picture as a Mermaid diagram, one box a package."""
    edges = thin_edges(find_edges())
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


def main() -> int:
    """Write or check the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when the picture is out of date")
    options = parser.parse_args()
    text = TARGET.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", flags=re.DOTALL)
    wanted = pattern.sub(lambda _: f"{BEGIN}\n{draw()}\n{END}", text)
    if options.check:
        if text != wanted:
            print("docs/architecture.md is out of date: run python tools/draw_architecture.py", file=sys.stderr)
        return int(text != wanted)
    TARGET.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
