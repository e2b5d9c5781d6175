"""Kept verdicts: what passed on the captures, rules and goldens that stand now is not judged again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import specrunner
from specrunner.cache.digests import Digests
from specrunner.cache.stamps import Stamper
from specrunner.cache.store import VERDICTS, Store
from specrunner.engines.stamp import find_places
from specrunner.environments.interpreters import installed_versions
from specrunner.golden.keys import find_root
from specrunner.plan.model import PlannedCase
from specrunner.requests import digest_of
from specrunner.results import CaseResult, CheckResult, Diagnosis, Verdict
from specrunner.secrets import own_redactor
from specrunner.spec.model import Case

KEPT = (Verdict.PASSED, Verdict.XFAILED)
"""What is kept. A failure is judged again, from kept captures, and so is what had no evidence."""

JUDGES = ("torch", "numpy", "safetensors")
"""Packages that checks compute with."""


class Verdicts:
    """Kept verdicts of one plan's cases.

    Args:
        store: where they are.
        stamper: of the plan's captures.
        digests: of files.
        strict: whether what is inconclusive fails, which is part of what a verdict means.
    """

    def __init__(self, store: Store, stamper: Stamper, digests: Digests, *, strict: bool) -> None:
        self._store = store
        self._stamper = stamper
        self._digests = digests
        self._judge = digest_of([strict, self._describe_judge()])
        self._inputs: dict[Path, tuple[str, str]] = {}

    def find(self, planned: PlannedCase) -> CaseResult | None:
        """Return the result that an earlier run came to on the same evidence, or None."""
        self.watch(planned.case)
        key = self._key_of(planned)
        record = self._store.find_record(VERDICTS, key) if key else None
        return None if record is None else read_result(planned.case, record)

    def watch(self, case: Case) -> None:
        """Note the files that a case's verdict will depend on as they are before it is judged."""
        for place in find_inputs(case):
            if place not in self._inputs:
                self._inputs[place] = self._describe_input(place)

    def list_changed(self) -> set[Path]:
        """Return which of the noted places are not as they were: nobody can tell what a case was held against."""
        self._digests.forget()
        return {place for place, seen in self._inputs.items() if seen != self._describe_input(place)}

    def _describe_input(self, place: Path) -> tuple[str, str]:
        return self._digests.state_of(place), self._digests.of(place)

    def keep(self, planned: PlannedCase, result: CaseResult) -> None:
        """Keep a result, if it is one that may be."""
        if result.verdict in KEPT and (key := self._key_of(planned)):
            self._store.keep_record(VERDICTS, key, describe_result(result))

    def _key_of(self, planned: PlannedCase) -> str | None:
        evidence = {role: self._stamper.key_of(found) for role, found in planned.evidence.items()}
        if not evidence or None in evidence.values():
            return None
        case = replace(planned.case, marks={}) if planned.case.marks else planned.case
        return digest_of([case, evidence, self._judge, *map(self._digests.of, find_inputs(case))])

    def _describe_judge(self) -> list[Any]:
        folders = {place.parent for name in JUDGES for place in find_places(name)}
        versions = installed_versions(sorted(folders))
        return [self._digests.of(Path(specrunner.__file__).parent), {name: versions.get(name) for name in JUDGES}]


def find_inputs(case: Case) -> list[Path]:
    """Return the files and folders, beside captures, that a case's verdict depends on."""
    places = []
    if case.golden is not None:
        root, suite = find_root(case.location.path)
        places.append(root / suite)
    if case.benchmark is not None and case.benchmark.baseline is not None and case.benchmark.baseline.file:
        places.append(Path(case.benchmark.baseline.file))
    return places


def describe_result(result: CaseResult) -> dict[str, Any]:
    """Return a result without its case, as JSON values."""
    return {
        "verdict": str(result.verdict),
        "checks": [asdict(check) for check in result.checks],
        "candidate": own_redactor().redact_values(result.candidate),
        "reference": own_redactor().redact_values(result.reference),
        "diagnosis": None if result.diagnosis is None else asdict(result.diagnosis),
    }


def read_result(case: Case, record: Mapping[str, Any]) -> CaseResult:
    """Rebuild a result from `describe_result`; it took no time in this run."""
    diagnosis = record["diagnosis"]
    return CaseResult(
        case,
        Verdict(record["verdict"]),
        tuple(CheckResult.from_json(check) for check in record["checks"]),
        candidate=record["candidate"],
        reference=record["reference"],
        diagnosis=None if diagnosis is None else Diagnosis.from_json(diagnosis),
        kept="verdict",
    )
