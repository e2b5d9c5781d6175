"""Spec files from what the user named: files, directories, `file.yaml::case` and `file.yaml::case[engine=hf]`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from specrunner.errors import UsageError
from specrunner.spec.model import Case
from specrunner.words import suggest

EXTENSIONS = (".yaml", ".yml")
SEPARATOR = "::"


@dataclass(frozen=True, slots=True)
class CaseSelector:
    """What stands after `::`: a case's name, and parameters that must agree.

    Attributes:
        text: as the user wrote it.
        name: the case's name.
        parameters: `key=value` pairs, all of which an expanded case must have.
    """

    text: str
    name: str
    parameters: frozenset[tuple[str, str]]

    @classmethod
    def parse(cls, text: str) -> CaseSelector:
        """Read `name` or `name[key=value,…]`.

        Raises:
            UsageError: it is neither.
        """
        name, bracket, rest = text.partition("[")
        pairs = [part.partition("=") for part in rest.removesuffix("]").split(",")] if rest.strip("]") else []
        if not name or (bracket and not rest.endswith("]")) or not all(key and equals for key, equals, _ in pairs):
            raise UsageError(f"`{text}` is not a case", help="write `file.yaml::name` or `file.yaml::name[engine=hf]`")
        return cls(text, name, frozenset((key, value) for key, _, value in pairs))

    def selects(self, case: Case) -> bool:
        """Tell whether a case is meant."""
        return case.name == self.name and self.parameters <= set(case.parameters)


@dataclass(slots=True)
class SpecFile:
    """A spec file to read.

    Attributes:
        path: as shown to the user, with forward slashes; relative to the working directory where it lies below it.
        selectors: the cases that are meant, or None for all.
    """

    path: str
    selectors: list[CaseSelector] | None

    @property
    def suite(self) -> str:
        """The path without its extension."""
        return PurePosixPath(self.path).with_suffix("").as_posix()


def find_files(paths: Sequence[str]) -> list[SpecFile]:
    """Return the spec files that `paths` name, each once, in the order named; directories are searched, sorted by name.

    Raises:
        UsageError: a path does not exist, or names a case of a directory.
    """
    found: dict[str, SpecFile] = {}
    for named in paths:
        path, separator, case = named.partition(SEPARATOR)
        if not path or not Path(path).exists():
            raise UsageError(f"no such file or directory: {path or named}", help=_nearest(path))
        if separator and Path(path).is_dir():
            raise UsageError(f"`{named}` names a case of a directory", help="write `file.yaml::name`")
        selector = CaseSelector.parse(case) if separator else None
        for file in _walk(path) if Path(path).is_dir() else [Path(path)]:
            shown = display_path(file)
            spec = found.setdefault(str(file.resolve()), SpecFile(shown, [] if selector else None))
            if selector is None:
                spec.selectors = None
            elif spec.selectors is not None:
                spec.selectors.append(selector)
    return list(found.values())


def _walk(directory: str) -> Iterator[Path]:
    """Yield the spec files below a directory, sorted by path; hidden ones, pipes and sockets are skipped."""
    files = []
    for root, directories, names in os.walk(directory, onerror=_refuse_directory):
        directories[:] = [name for name in directories if not name.startswith(".")]
        files += [Path(root, n) for n in names if n.endswith(EXTENSIONS) and not n.startswith(".")]
    yield from sorted((file for file in files if file.is_file() or not file.exists()), key=lambda file: file.parts)


def _refuse_directory(error: OSError) -> None:
    raise UsageError(f"the directory {error.filename} cannot be read: {error.strerror}")


def display_path(path: Path) -> str:
    """Return a file as messages call it: from the working directory where it lies below, else in full."""
    relative = Path(os.path.relpath(path))
    outside = relative.parts[:1] == (os.pardir,)
    return Path(os.path.normpath(path)).as_posix() if outside else relative.as_posix()


def _nearest(path: str) -> str | None:
    """Suggest an existing path that differs in one part."""
    parent = Path(path).parent
    while not parent.is_dir():
        path, parent = str(parent), parent.parent
    try:
        names = [entry.name for entry in parent.iterdir() if entry.is_dir() or entry.suffix in EXTENSIONS]
    except OSError:
        return None
    guess = suggest(Path(path).name, names)
    return f"did you mean `{(parent / guess).as_posix()}`?" if guess else None
