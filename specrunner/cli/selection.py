"""The arguments by which every command picks its cases."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specrunner.errors import NothingVerified, UsageError

if TYPE_CHECKING:  # the loader brings the YAML library, which `--help` does not need
    from specrunner.spec.loader import LoadedSpecs
    from specrunner.spec.model import Case

DEFAULT_PATH = "specs"


def add_path_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `PATH…`."""
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="spec files, directories, file.yaml::case or 'file.yaml::case[engine=hf]' (default: specs)",
    )


def add_selection_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `PATH…`, `-k`, `-t`, `-p`, `--shard` and `--no-cases`."""
    add_path_argument(parser)
    group = parser.add_argument_group("selection")
    group.add_argument(
        "-k", dest="keywords", metavar="EXPR", help="parts of suite, name, id or tags, with and, or, not, parentheses"
    )
    group.add_argument(
        "-t",
        dest="tags",
        metavar="TAG",
        action="append",
        default=[],
        help="cases with this tag; repeated: with any of them",
    )
    group.add_argument(
        "-p",
        dest="parameters",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="narrow the matrix, e.g. dtype=float32 or engine=hf; values of one key are alternatives",
    )
    group.add_argument("--shard", metavar="I/N", help="the I-th of N parts; cases that share an engine stay together")
    group.add_argument(
        "--no-cases",
        choices=("fail", "warn", "pass"),
        help="what an empty selection is: exit 5, a warning, or nothing to mention (default: fail)",
    )


def load_paths(paths: Sequence[str], timeout: float | None = None) -> LoadedSpecs:
    """Load the specs that a command was given, or those under `specs`.

    Raises:
        UsageError: a path does not exist, or none was given and there is no directory `specs`.
    """
    from specrunner.spec.loader import load_specs

    if not paths:
        if not Path(DEFAULT_PATH).is_dir():
            raise UsageError(
                "no spec was named, and there is no directory `specs` here",
                help="name a spec file or directory; `specrunner init` writes a first one",
            )
        paths = [DEFAULT_PATH]
    return load_specs(paths, timeout=timeout)


def select_cases(
    options: argparse.Namespace, no_cases: str | None = None, timeout: float | None = None
) -> tuple[Case, ...]:
    """Return the cases that the command line means, in order; none at all only where `--no-cases` allows it.

    Args:
        options: the parsed arguments.
        no_cases: what an empty selection is, where a setting decides it; None is what the arguments say.
        timeout: seconds for the cases that state none.

    Raises:
        SpecError: a spec is invalid.
        UsageError: a path or parameter does not exist, or an expression is malformed.
        NothingVerified: no case is left, under `--no-cases fail`.
    """
    from specrunner.plan.capabilities import check_capabilities
    from specrunner.plan.shards import parse_shard
    from specrunner.spec.select import Selection, parse_parameter
    from specrunner.spec.select import select_cases as narrow_cases
    from specrunner.words import plural

    shard = parse_shard(options.shard) if options.shard else None
    loaded = load_paths(options.paths, timeout)
    cases = check_capabilities(loaded).require_valid()
    parameters = tuple(parse_parameter(text) for text in options.parameters)
    try:
        selected = narrow_cases(cases, Selection(options.keywords, tuple(options.tags), parameters))
        if shard is None:
            return selected
        kept = tuple(shard.select(selected))
        print(f"shard {options.shard}: {len(kept):,} of {plural(len(selected), 'case')}", file=sys.stderr)
        return kept
    except NothingVerified as error:
        no_cases = no_cases or options.no_cases or "fail"
        if no_cases == "fail":
            raise
        if no_cases == "warn":
            print(f"warning: {error.message}", file=sys.stderr)
        return ()
