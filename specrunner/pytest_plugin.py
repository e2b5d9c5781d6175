"""The pytest plugin: spec files under the paths given are collected, and each of their cases is an item.

It is inert until a YAML file that is a spec turns up, and torch is never imported here: the cases that were selected
run together in one process of their own (`specrunner.testing`), started at the first item, so that an engine is loaded
once, also under pytest-xdist.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from specrunner.reporters.record import CaseRecord
    from specrunner.spec.model import Case
    from specrunner.testing.verdicts import Verdicts

EXTENSIONS = (".yaml", ".yml")
FOLDER = "specrunner_folder"
"""Where xdist's controller tells its workers which folder they share."""

_KEYS = ("version", "cases")
_VERDICTS = pytest.StashKey["Verdicts"]()
_SHARED = pytest.StashKey[Path]()
_OWN = pytest.StashKey[Path]()


class CaseFailed(Exception):
    """A case's numbers are wrong, it passed although its spec expects it to fail, or there is no evidence.

    Args:
        message: one line for pytest's summary.
        text: what the terminal report tells about the case.
    """

    def __init__(self, message: str, text: str) -> None:
        super().__init__(text)
        self.message = message

    @classmethod
    def from_record(cls, record: CaseRecord) -> CaseFailed:
        """Tell a case with its verdict."""
        from specrunner.testing import describe_record

        return cls(record.message, describe_record(record))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare our options."""
    group = parser.getgroup("specrunner", "spec files of specrunner")
    group.addoption(
        "--spec-param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="narrow the matrix of specs, e.g. dtype=float32 or engine=hf; values of one key are alternatives",
    )
    group.addoption("--spec-strict", action="store_true", default=None, help="a skipped case of a spec is an error")
    group.addoption("--spec-jobs", metavar="N", help="engine processes at once")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SpecFile | None:
    """Collect a YAML file that has `version` and `cases` at its top level."""
    if file_path.suffix in EXTENSIONS and is_spec(file_path):
        return SpecFile.from_parent(parent, path=file_path)
    return None


def is_spec(path: Path) -> bool:
    """Tell whether a YAML file means to be a spec, sound or not, without parsing it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    body = re.sub(r"^\s*(#.*|---.*)?\n", "", text, flags=re.MULTILINE)
    start = r"[{,]\s*" if body.lstrip().startswith("{") else r"^"
    return all(re.search(rf"{start}[\"']?{key}[\"']?\s*:", body, re.MULTILINE) for key in _KEYS)


class SpecFile(pytest.File):
    """A spec file."""

    def collect(self) -> Iterator[SpecItem]:
        """Yield an item for every case.

        Raises:
            CollectError: the spec is invalid; the message is what `specrunner validate` prints.
        """
        from specrunner.errors import SpecError, SpecrunnerError
        from specrunner.plan.capabilities import check_capabilities
        from specrunner.spec.diagnostics import print_diagnostics
        from specrunner.spec.loader import load_specs

        try:
            cases = check_capabilities(load_specs([str(self.path)])).require_valid()
        except SpecError as error:
            told = io.StringIO()
            print_diagnostics(error.diagnostics, told, color=False)
            raise self.CollectError(told.getvalue()) from error
        except SpecrunnerError as error:
            raise self.CollectError(error.message + (f"\nhelp: {error.help}" if error.help else "")) from error
        for case in cases:
            yield SpecItem.from_parent(self, name=case.id, case=case)


class SpecItem(pytest.Item):
    """A case of a spec.

    Args:
        case: the case.
        kwargs: what pytest hands on.
    """

    def __init__(self, *, case: Case, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.case = case
        self.record: CaseRecord | None = None
        for tag in case.tags:
            if not any(line.split(":")[0] == tag for line in self.config.getini("markers")):
                self.config.addinivalue_line("markers", f"{tag}: a tag of specrunner's specs")
            self.add_marker(tag)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return file, line (from 0) and name."""
        return self.path, self.case.location.line - 1, self.name

    def setup(self) -> None:
        """Wait for the verdict: without evidence the item is an error, not a failure."""
        from specrunner.errors import EngineError

        try:
            self.record = find_verdicts(self.session).wait_for(self.case.node_id)
        except EngineError as error:
            raise CaseFailed(error.message, "\n".join(filter(None, (error.message, error.log_tail)))) from None
        self.user_properties.append(("specrunner_seconds", round(self.record.seconds, 3)))
        if self.record.verdict in ("skipped", "inconclusive"):
            help_text = self.record.failure.help if self.record.failure else None
            reason = self.record.message + (f" ({help_text})" if help_text else "")
            raise pytest.skip.Exception(reason, _use_item_location=True)
        if self.record.verdict == "error":
            raise CaseFailed.from_record(self.record)

    def runtest(self) -> None:
        """Say what the verdict is."""
        assert self.record is not None
        if self.record.verdict == "xfailed":
            pytest.xfail(self.record.xfail)
        if self.record.verdict != "passed":
            raise CaseFailed.from_record(self.record)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the lines that the terminal report has for this case."""
        error = excinfo.value
        if not isinstance(error, CaseFailed):
            return super().repr_failure(excinfo, style)
        told = excinfo.getrepr(style="value", chain=False)
        if told.reprcrash is not None:
            told.reprcrash.path, told.reprcrash.lineno = self.case.location.path, self.case.location.line
            told.reprcrash.message = error.message
        return told


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell a case without evidence as one that failed, where pytest would show our source."""
    report = yield
    if report.failed and isinstance(item, SpecItem) and call.excinfo is not None:
        report.longrepr = item.repr_failure(call.excinfo)
    return report


def find_verdicts(session: pytest.Session) -> Verdicts:
    """Return the session's verdicts: those of all cases that were selected."""
    from specrunner.testing.verdicts import Verdicts

    config = session.config
    if _VERDICTS not in config.stash:
        shared = getattr(config, "workerinput", {}).get(FOLDER)
        if shared is None:
            config.stash[_OWN] = Path(tempfile.mkdtemp(prefix="specrunner-pytest-"))
        items = [item for item in session.items if isinstance(item, SpecItem)]
        config.stash[_VERDICTS] = Verdicts(
            Path(shared) if shared is not None else config.stash[_OWN],
            list(dict.fromkeys(item.case.location.path for item in items)),
            list(dict.fromkeys(item.case.node_id for item in items)),
            {"strict": config.getoption("spec_strict"), "jobs": config.getoption("spec_jobs")},
        )
    return config.stash[_VERDICTS]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the cases that `--spec-param` does not mean."""
    wanted = config.getoption("spec_param")
    specs = [item for item in items if isinstance(item, SpecItem)] if wanted else []
    if not specs:
        return
    from specrunner.errors import NothingVerified, UsageError
    from specrunner.spec.select import Selection, parse_parameter, select_cases

    try:
        parameters = tuple(parse_parameter(text) for text in wanted)
        kept = {case.node_id for case in select_cases([item.case for item in specs], Selection(parameters=parameters))}
    except NothingVerified:
        kept = set()
    except UsageError as error:
        raise pytest.UsageError(error.message.replace("-p ", "--spec-param ", 1)) from error
    left_out = [item for item in specs if item.case.node_id not in kept]
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist which folder it shares with the others."""
    if _SHARED not in node.config.stash:
        node.config.stash[_SHARED] = Path(tempfile.mkdtemp(prefix="specrunner-pytest-"))
    node.workerinput[FOLDER] = str(node.config.stash[_SHARED])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End the run of the cases; a worker of pytest-xdist lets it finish, since others may wait for its verdicts."""
    verdicts = session.config.stash.get(_VERDICTS, None)
    if verdicts is not None:
        stopped = session.shouldstop or session.shouldfail or exitstatus == pytest.ExitCode.INTERRUPTED
        shared = hasattr(session.config, "workerinput")
        verdicts.close(finish=verdicts.complete or (shared and not stopped))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove our folders."""
    for key in (_SHARED, _OWN):
        if key in config.stash:
            shutil.rmtree(config.stash[key], ignore_errors=True)
