"""Specs inside tests of your own: `run_specs` runs them once, `SpecRun.verify` holds a test to some of their cases.

@pytest.fixture(scope="module")
def llada2():
    return run_specs("specs/llada2", parameters={"model": "tiny"})

def test_the_router(llada2):
    llada2.verify("3-mixture-of-experts")
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specrunner.errors import ExitCode, NothingVerified, SpecrunnerError
from specrunner.folders import join_import_path
from specrunner.reporters.record import CaseRecord, RunRecord
from specrunner.results import Verdict

GREEN = (Verdict.PASSED, Verdict.XFAILED)
_RAN = (ExitCode.PASSED, ExitCode.FAILED, ExitCode.NOTHING_VERIFIED, ExitCode.ERRORS)


@dataclass(frozen=True, slots=True)
class SpecRun:
    """A finished run.

    Attributes:
        record: the run with all its evidence, as the JSON report has it.
    """

    record: RunRecord

    def find(self, keywords: str = "") -> tuple[CaseRecord, ...]:
        """Return the cases that an expression means, in the order of the plan.

        Args:
            keywords: as after `-k`: parts of suite, name, id and tags, with `and`, `or`, `not`; "" means all.

        Raises:
            NothingVerified: there is no such case.
            UsageError: the expression is malformed.
        """
        from specrunner.spec.keywords import compile_keywords

        matches = compile_keywords(keywords) if keywords else lambda names: True
        found = tuple(
            case
            for case in self.record.cases
            if matches([text.lower() for text in (case.suite, case.name, case.id, *case.tags)])
        )
        if not found:
            raise NothingVerified(f"no case matches `{keywords}`")
        return found

    def verify(self, keywords: str = "", *, allow_skips: bool = False) -> tuple[CaseRecord, ...]:
        """Return the cases that an expression means, all of them green.

        Args:
            keywords: see `find`.
            allow_skips: whether some (not all) of them may have been skipped.

        Raises:
            AssertionError: one is not; the message is what the terminal report tells about each.
            NothingVerified: there is no such case.
        """
        found = self.find(keywords)
        allowed = (*GREEN, Verdict.SKIPPED) if allow_skips else GREEN
        bad = [case for case in found if case.verdict not in allowed]
        if not bad and all(case.verdict is Verdict.SKIPPED for case in found):
            bad = list(found)
        if bad:
            raise AssertionError("\n\n".join(describe_record(case) for case in bad))
        return found


def run_specs(
    *paths: str | Path,
    keywords: str | None = None,
    tags: Sequence[str] = (),
    parameters: Mapping[str, str | Sequence[str]] | None = None,
    jobs: int | None = None,
    cwd: Path | None = None,
) -> SpecRun:
    """Run specs in a process of their own, as `specrunner run` does; red cases raise nothing here.

    Args:
        paths: spec files, directories, `file.yaml::case`.
        keywords: as `-k`.
        tags: cases with one of these tags, as `-t`.
        parameters: narrows the matrix, as `-p`; several values of one key are alternatives.
        jobs: engine processes at once.
        cwd: the directory to run in; the current one by default.

    Raises:
        NothingVerified: the selection is empty.
        SpecrunnerError: a path, parameter, setting or spec is wrong; the message is what the command printed.
    """
    arguments = [os.fspath(path) for path in paths]
    arguments += ["-k", keywords] if keywords is not None else []
    arguments += [word for tag in tags for word in ("-t", tag)]
    for key, values in (parameters or {}).items():
        arguments += [
            w for value in ([values] if isinstance(values, str) else values) for w in ("-p", f"{key}={value}")
        ]
    arguments += ["-j", str(jobs)] if jobs is not None else []
    with tempfile.TemporaryDirectory(prefix="specrunner-") as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [sys.executable, "-m", "specrunner", "run", *arguments, "--json", str(report), "--color", "never"],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": join_import_path()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if report.is_file() and done.returncode in _RAN:
            from specrunner.reporters.json import read_run

            return SpecRun(read_run(report))
    error = NothingVerified if done.returncode == ExitCode.NOTHING_VERIFIED else SpecrunnerError
    raise error(done.stderr.strip().removeprefix("error: ") or f"exit status {done.returncode}")


def describe_record(record: CaseRecord) -> str:
    """Return the block that the terminal report prints for a case that is not green."""
    from specrunner.reporters.details import LABELS, describe_case
    from specrunner.reporters.escape import escape_line

    heading = f"{LABELS[record.verdict]:<5} {escape_line(record.node_id)}"
    return "\n".join([heading, *(f"      {line}".rstrip() for line in describe_case(record))])
