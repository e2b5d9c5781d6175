"""The plan of the house: floors without an arrow up, what imports what heavy library, and how long a module is."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import specrunner

ROOT = Path(specrunner.__file__).parents[1]

LINES = 400

LIBRARIES = {
    "torch": ("engines", "models", "checks", "golden", "sessions.captures", "environments.import_check"),
    "numpy": ("engines", "models", "sessions.captures"),
    "transformers": ("engines", "models", "benchmarks.evaluate"),
    "vllm": ("engines.vllm",),
    "sglang": ("engines.sglang",),
    "lm_eval": ("benchmarks",),
    "ray": ("sessions.ray",),
    "yaml": ("spec.tree", "spec.syntax", "engines.name_maps", "engines.sglang"),
    "tomllib": ("config",),
    "jsonschema": ("spec.validator", "spec.explain"),
    "junit_xml": ("reporters.junit",),
    "jinja2": ("reporters.html.page",),
}
"""Who imports a library at all: packages, or modules. A format that one module reads and writes has one importer."""

AT_ONCE = ("golden", "checks", "models", "engines.planters.served", "engines.sglang.standins.torchvision")
"""Where torch may be imported with the module, and in planters for Transformers; elsewhere only inside a function."""

STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
"""What can hold an import: no expression does."""

HF_PLANTER = r"engines\.planters\.hf_\w+"

NAMING = ("catalogue.engines", "cli")
"""Who says `vllm` or `sglang` outside of the engines: their list, examples in helps, whose versions are told first."""


@cache
def draw() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "tools" / "draw_architecture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def modules() -> dict[str, ast.Module]:
    return {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in draw().read_modules().items()}


@cache
def edges() -> dict[str, set[str]]:
    found: dict[str, set[str]] = draw().find_all_edges()
    return found


def is_below(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def imported(node: ast.AST, *, deferred: bool = True) -> set[str]:
    """Return the first parts of what is imported; `deferred` counts imports inside of functions, too."""
    if not deferred and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return set()
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return set()
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return set() if node.level else {(node.module or "").partition(".")[0]}
    inner = (child for child in ast.iter_child_nodes(node) if isinstance(child, STATEMENTS))
    return {name for child in inner for name in imported(child, deferred=deferred)}


def test_every_room_has_its_floor() -> None:
    rooms = [room for floor in draw().FLOORS for room in floor]
    assert sorted(rooms) == sorted({name.partition(".")[0] for name in modules()})


def test_every_room_is_named_outside_of_the_pictures() -> None:
    page = re.sub(r"```.*?```", "", draw().TARGET.read_text(encoding="utf-8"), flags=re.DOTALL)
    rooms = [room for floor in draw().FLOORS for room in floor]
    assert [room for room in rooms if not re.search(rf"`{room}(/|\.py|`|\.)", page)] == []


def test_no_arrow_leads_up() -> None:
    height = {room: number for number, floor in enumerate(draw().FLOORS) for room in floor}
    joined = draw().join_edges(edges(), height)
    assert joined["plan"] > {"spec", "engines"}
    assert [(one, other) for one in joined for other in joined[one] if height[other] >= height[one]] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    open_edges = {module: set(targets) for module, targets in edges().items()}
    while ready := {module for module, targets in open_edges.items() if not targets}:
        open_edges = {module: targets - ready for module, targets in open_edges.items() if module not in ready}
    assert open_edges == {}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_where_it_belongs(library: str) -> None:
    users = [name for name, tree in modules().items() if library in imported(tree)]
    assert users and [name for name in users if not is_below(name, LIBRARIES[library])] == []


def test_torch_comes_with_no_module_that_lists_or_plans() -> None:
    users = [name for name, tree in modules().items() if "torch" in imported(tree, deferred=False)]
    assert users and [n for n in users if not is_below(n, AT_ONCE) and not re.fullmatch(HF_PLANTER, n)] == []


def test_served_engines_are_named_in_the_engines_alone() -> None:
    found = set()
    for name, tree in modules().items():
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        if any(re.search(r"\b(vllm|sglang)\b", text.value, re.IGNORECASE) and id(text) not in told for text in texts):
            found.add(name)
    assert "catalogue.engines" in found
    assert [name for name in found if not is_below(name, ("engines", "faults", *NAMING))] == []


def test_a_long_module_says_why() -> None:
    long = {}
    for name, file in draw().read_modules().items():
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > LINES:
            long[name] = f"Over {LINES} lines, since" in (ast.get_docstring(modules()[name]) or "")
    assert len(long) > 1 and [name for name, explained in long.items() if not explained] == []
