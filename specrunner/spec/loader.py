"""Loading specs: from paths to checked cases, with the diagnostics of all files in one go."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from specrunner.catalogue.engines import engine_names
from specrunner.errors import SpecError, UsageError
from specrunner.spec.cases import CaseReader
from specrunner.spec.diagnostics import ENOUGH, Diagnostic, accepted_values, sort_diagnostics
from specrunner.spec.merge import span_at
from specrunner.spec.model import Case, Location
from specrunner.spec.paths import SpecFile, find_files
from specrunner.spec.schema import compile_definition
from specrunner.spec.source import Source, read_source
from specrunner.spec.tree import Map, Seq
from specrunner.words import plural

MAX_DIAGNOSTICS = 100
"""Diagnostics that are shown of one file, and broken cases that are explained."""

_OMITTED = "too-many"


@dataclass(frozen=True, slots=True)
class LoadedSpecs:
    """What `load_specs` found.

    Attributes:
        cases: the selected cases, in the order of files and of writing; those of valid entries only.
        diagnostics: everything that is wrong, sorted by file and line. With any of them, nothing should be run.
        files: the spec files read, as shown to the user.
    """

    cases: tuple[Case, ...]
    diagnostics: tuple[Diagnostic, ...]
    files: tuple[str, ...]

    def require_valid(self) -> tuple[Case, ...]:
        """Return the cases.

        Raises:
            SpecError: there are diagnostics.
        """
        if self.diagnostics:
            raise SpecError(self.diagnostics)
        return self.cases


def load_specs(
    paths: Sequence[str],
    engines: Sequence[str] | None = None,
    recipes: Sequence[str] | None = None,
    timeout: float | None = None,
) -> LoadedSpecs:
    """Read, check and expand specs.

    Args:
        paths: files, directories (searched for `*.yaml` and `*.yml`), `file.yaml::case`, `file.yaml::case[engine=hf]`.
        engines: names that are engines; all that are installed by default.
        recipes: names that are recipes; ours by default.
        timeout: seconds for the cases that state none; by default what the schema says.

    Raises:
        UsageError: a path does not exist, or a valid file has no case of the name given.
    """
    with _collection_paused():
        return _load(paths, engines, recipes, timeout)


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keep the cyclic garbage collector still: loading makes many objects, keeps nearly all, and makes no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _load(
    paths: Sequence[str], engines: Sequence[str] | None, recipes: Sequence[str] | None, timeout: float | None
) -> LoadedSpecs:
    known_engines = engine_names() if engines is None else tuple(engines)
    known_recipes = recipe_names() if recipes is None else tuple(recipes)
    cases: list[Case] = []
    diagnostics: list[Diagnostic] = []
    files = find_files(paths)
    suites: dict[str, str] = {}
    for file in files:
        source = read_source(file.path)
        found, problems = read_spec(source, file.suite, known_engines, known_recipes, timeout)
        if file.suite in suites:
            problems.insert(0, _repeated_suite(source, file.suite, suites[file.suite]))
        suites.setdefault(file.suite, file.path)
        diagnostics.extend(_bounded(problems))
        cases.extend(found if file.selectors is None else _select(found, file, bool(problems)))
    return LoadedSpecs(tuple(cases), tuple(diagnostics), tuple(file.path for file in files))


def recipe_names() -> tuple[str, ...]:
    """Return the names of all recipes."""
    from specrunner.catalogue.recipes import RECIPES

    return tuple(RECIPES)


def read_spec(
    source: Source,
    suite: str,
    engines: Sequence[str],
    recipes: Sequence[str] | None,
    timeout: float | None = None,
) -> tuple[list[Case], list[Diagnostic]]:
    """Return the cases of one file, and what is wrong with it."""
    diagnostics = list(source.diagnostics)
    root = source.root
    diagnostics += [source.diagnose("odd-number", "a number must be finite", span) for span in source.odd_numbers]
    if root is None:
        return [], diagnostics
    if not isinstance(root, Map):
        advice = "a spec begins with `version: 1` and lists its `cases`"
        return [], [*diagnostics, source.diagnose("wrong-type", "a spec must be a mapping", (0, 1), advice)]
    is_sound = compile_definition("spec")(root)
    check = compile_definition("case")
    entries = root.get("cases")
    valid = [check(entry) for entry in entries] if isinstance(entries, Seq) else []
    if not is_sound or not all(valid):
        diagnostics += _explain(source, root, valid, diagnostics)
    if not is_sound:
        return [], diagnostics
    reader = CaseReader(source, suite, engines, recipes)
    if timeout is not None:
        reader.timeout = timeout
    cases = reader.read(valid)
    return cases, diagnostics + reader.diagnostics


def _explain(source: Source, root: Map, valid: Sequence[bool], diagnostics: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Say what breaks the schema where `diagnostics` say nothing yet.

    Of the cases only the broken ones are looked at, and of these only the first, since jsonschema is slow.
    """
    from specrunner.spec.explain import explain

    broken = [index for index, is_valid in enumerate(valid) if not is_valid]
    shown = broken[:MAX_DIAGNOSTICS] or list(range(len(valid)))[:1]
    document = dict(root)
    if valid:
        document["cases"] = [root["cases"][index] for index in shown]
    found = []
    known = {diagnostic.location for diagnostic in diagnostics}
    for finding in explain(None, document):
        path = finding.path
        if len(path) > 1 and path[0] == "cases" and isinstance(path[1], int):
            path = ("cases", shown[path[1]], *path[2:])
        span, _ = span_at(root, path, finding.at_key)
        diagnostic = source.diagnose(finding.code, finding.message, span, finding.help)
        if diagnostic.location not in known:
            found.append(diagnostic)
    if len(broken) > MAX_DIAGNOSTICS:
        span, _ = span_at(root, ("cases", broken[MAX_DIAGNOSTICS]))
        found.append(_omit(plural(len(broken) - MAX_DIAGNOSTICS, "more broken case"), source.locate(span[0])))
    return found


def _repeated_suite(source: Source, suite: str, other: str) -> Diagnostic:
    message = f"two files make the suite `{suite}`"
    return source.diagnose("duplicate-id", message, (0, 1), "rename one of them", (f"the other is {other}",))


def _bounded(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    found = sort_diagnostics(diagnostics)
    omitted = [diagnostic for diagnostic in found if diagnostic.code == _OMITTED]
    told = [diagnostic for diagnostic in found if diagnostic.code != _OMITTED]
    if len(told) > MAX_DIAGNOSTICS:
        least = "at least " if len(told) >= ENOUGH else ""
        more = plural(len(told) - MAX_DIAGNOSTICS, "more problem")
        omitted.insert(0, _omit(least + more, told[MAX_DIAGNOSTICS].location))
    return (*told[:MAX_DIAGNOSTICS], *omitted)


def _omit(what: str, location: Location) -> Diagnostic:
    verb = "is" if what.startswith("1 ") else "are"
    return Diagnostic(_OMITTED, f"{what} in this file {verb} not shown", location)


def _select(cases: Sequence[Case], file: SpecFile, has_problems: bool) -> list[Case]:
    selectors = file.selectors or []
    for selector in selectors:
        if not has_problems and not any(selector.selects(case) for case in cases):
            names = list(dict.fromkeys(case.name for case in cases))
            known = [case.id for case in cases if case.name == selector.name] if selector.name in names else names
            advice = accepted_values(selector.text, known, "cases")
            raise UsageError(f"no case `{selector.text}` in {file.path}", help=advice)
    return [case for case in cases if any(selector.selects(case) for selector in selectors)]
