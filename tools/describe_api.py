"""The page of the Python interface, made from the docstrings of what `specrunner` names."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import specrunner

GROUPS = {
    "Specs and plans": ("load_specs", "LoadedSpecs", "check_capabilities", "Case", "Diagnostic", "make_plan", "Plan"),
    "Runs and their results": ("run_specs", "SpecRun", "read_run", "RunRecord", "CaseRecord", "CheckResult", "Verdict"),
    "Comparing captures": ("compare", "Differences"),
    "Engines of your own": ("Engine", "Capabilities", "Session", "Request", "Capture", "encode_prompt", "match_name"),
    "Errors": (
        *("SpecrunnerError", "UsageError", "ConfigurationError", "SpecError", "NothingVerified", "EngineError"),
        *("CaptureIncomplete", "ModelUnsupported", "ModelUnavailable", "EngineOutOfMemory", "ExitCode"),
    ),
}

INTRODUCTION = """\
<!-- Written by tools/generate_docs.py from the docstrings; change those instead. -->

# The Python interface

What a program may use is what `import specrunner` names; the rest of the package may change from release to release.
The import brings neither torch, numpy nor a YAML library: each name is imported when it is first used. Types are
shipped (`py.typed`).

```python
import specrunner

loaded = specrunner.check_capabilities(specrunner.load_specs(["specs/smoke"]))
for diagnostic in loaded.diagnostics:
    print(diagnostic.location.path, diagnostic.code, diagnostic.message)

plan = specrunner.make_plan(loaded.require_valid())
print(len(plan.cases), "cases in", len(plan.sessions), "sessions")
```

Running needs the extra `hf`, as on the command line; the run has a process of its own:

```python
run = specrunner.run_specs("specs/smoke", parameters={"engine": "hf"})
for case in run.record.cases:
    print(case.verdict, case.node_id, case.message)
```

A report that an earlier run wrote is read by `read_run(Path("report.json"))`. Two directories of captures, or two
safetensors files:

```python
differences = specrunner.compare("new.safetensors", "old.safetensors", "{sqnr: 40}")
print(differences.passed, differences.first, differences.message)
```

Inside of tests see [pytest](pytest.md); an engine of your own is described in [plugin engine](plugin-engine.md).
"""

SECTION = re.compile(r"(Args|Attributes|Returns|Raises):")


def render() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for group, names in GROUPS.items():
        parts.append(f"## {group}\n")
        if group == "Errors":
            parts += ["All errors that a user can act on are one tree (`specrunner.errors`):\n", draw_errors()]
        parts += [line for name in names for line in describe(name)]
    return "\n".join(parts)


def list_signatures() -> list[str]:
    """Return a line for every name, and for every public method of a class, with its signature."""
    lines = ["__version__: str"]
    for name in sorted(name for names in GROUPS.values() for name in names):
        found = getattr(specrunner, name)
        if name in ("ExitCode", "Verdict"):
            lines.append(f"{name}: {', '.join(f'{one.name} = {one.value!r}' for one in found)}")
            continue
        lines.append(write_signature(name, found))
        for method, value in list_methods(found) if inspect.isclass(found) else ():
            shown = (
                f".{method}" if isinstance(value, property | cached_property) else write_signature(f".{method}", value)
            )
            lines.append(f"    {shown}")
    return lines


def describe(name: str) -> list[str]:
    """Return the lines of one name: its signature, what it is, and its public methods."""
    found = getattr(specrunner, name)
    lines = [f"### {name}\n"]
    if name == "ExitCode":
        lines += ["```python", *(f"{code.name} = {int(code)}" for code in found), "```\n"]
    elif not inspect.isclass(found) or dataclasses.is_dataclass(found) or not issubclass(found, str):
        lines += ["```python", write_signature(name, found), "```\n"]
    else:
        lines.append(" · ".join(f"`{one.value}`" for one in found) + "\n")
    lines.append(render_docstring(inspect.getdoc(found) or ""))
    if inspect.isclass(found):
        for method, value in list_methods(found):
            summary = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
            if isinstance(value, property | cached_property):
                lines.append(f"- `.{method}`: {summary}")
            else:
                lines.append(f"- `{write_signature('.' + method, value)}`: {summary}")
        lines.append("")
    return lines


def list_methods(found: type) -> list[tuple[str, Any]]:
    """Return the public methods and properties that a class defines itself, in the order of its source."""
    own = [(name, value) for name, value in vars(found).items() if not name.startswith("_")]
    return [
        (name, getattr(found, name) if isinstance(value, classmethod | staticmethod) else value)
        for name, value in own
        if inspect.isfunction(value) or isinstance(value, classmethod | staticmethod | property | cached_property)
    ]


def write_signature(name: str, found: Any) -> str:
    """Return a signature with its types as they are written in the source."""
    signature = inspect.signature(found)
    parameters = [
        one.replace(annotation=_plain(one.annotation), default=_plain_default(one.default))
        for one in signature.parameters.values()
    ]
    if parameters and parameters[0].name == "self":
        del parameters[0]
    returns = _plain(signature.return_annotation)
    text = str(signature.replace(parameters=parameters, return_annotation=returns))
    return f"{name}{text.removesuffix(' -> None')}" if inspect.isclass(found) else f"{name}{text}"


class _Written:
    """An annotation that is shown as its source."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _plain(annotation: Any) -> Any:
    return _Written(annotation) if isinstance(annotation, str) else annotation


def _plain_default(value: Any) -> Any:
    """Show a default that has no source of its own as an ellipsis."""
    is_plain = value is inspect.Parameter.empty or value is None or isinstance(value, str | int | float | tuple)
    return value if is_plain else _Written("...")


def render_docstring(text: str) -> str:
    """Return a docstring in Google's layout as Markdown: sections as lists, the rest as it stands."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if SECTION.fullmatch(line):
            inside = True
            lines += [f"{line[:-1]}:", ""] if line != "Args:" else ["Arguments:", ""]
        elif not inside or not line.startswith("    "):
            inside = inside and not line
            lines.append(line)
        elif line.startswith("        "):
            lines[-1] += f" {line.strip()}"
        else:
            name, colon, meaning = line.strip().partition(": ")
            is_name = bool(colon) and " " not in name
            lines.append(f"- `{name}`: {meaning}" if is_name else f"- {line.strip()}")
    return "\n".join(lines) + "\n"


def draw_errors() -> str:
    """Return the tree in the docstring of `specrunner.errors`."""
    import specrunner.errors

    tree = (specrunner.errors.__doc__ or "").split("\n\n")[1]
    return f"```text\n{inspect.cleandoc(tree)}\n```\n"
