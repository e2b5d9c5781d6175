"""Proving a set of cases: one run over cases times faults, in which each engine is loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from specrunner.config import Settings
from specrunner.errors import ExitCode
from specrunner.events import CaseFinished, Event
from specrunner.faults.bugs import FAULTS
from specrunner.faults.catalogue import check_patterns, find_faults, find_variants
from specrunner.faults.model import Fault
from specrunner.faults.variants import VARIANTS
from specrunner.launch import make_options
from specrunner.plan.build import Planner
from specrunner.proof.matrix import Entry, Matrix, judge_result, make_rows
from specrunner.proof.prompts import draw_prompts
from specrunner.reporters.base import Reporter
from specrunner.reporters.progress import Progress
from specrunner.results import CaseResult, Verdict
from specrunner.runner import Run
from specrunner.spec.model import Case

FAULT, DRAW = "fault", "draw"
"""Parameters that a proof appends to a case's own."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One case under one change of its engine.

    Attributes:
        case: the case as it is run, its parameters telling change and draw.
        original: the case as the spec has it.
        fault: the change; None is the engine as it is.
        draw: the number of the held-out prompt, from 1; 0 is the case's own.
    """

    case: Case
    original: Case
    fault: Fault | None = None
    draw: int = 0


@dataclass(slots=True)
class Results(Reporter):
    """Keeps every case's result, by node id."""

    found: dict[str, CaseResult] = field(default_factory=dict)

    def handle(self, event: Event) -> None:
        """Keep the result of a case."""
        if isinstance(event, CaseFinished):
            self.found[event.result.case.node_id] = event.result


def plan_trials(
    cases: Sequence[Case],
    patterns: Sequence[str] = (),
    *,
    faults: bool = True,
    variants: bool = True,
    draws: int = 0,
    seed: int = 0,
) -> list[Trial]:
    """Return what has to be run.

    Args:
        cases: those that are not expected to fail.
        patterns: names or areas of faults and variants; none selects all.
        faults: whether bugs are planted.
        variants: whether legitimate variants are.
        draws: held-out prompts a case, on which the variants and the engine as it is run, too.
        seed: of the draws.

    Raises:
        UsageError: a pattern selects nothing of what is to be planted.
    """
    check_patterns(patterns, faults=faults, variants=variants)
    trials = [Trial(case, case) for case in cases]
    for case in cases:
        engine = case.candidate.engine
        if faults:
            for fault in find_faults(engine, patterns):
                if case.decode is not None or not fault.decodes:
                    trials.append(Trial(_mark(case, FAULT, fault.name), case, fault))
        legitimate = find_variants(engine, patterns) if variants else ()
        trials += [Trial(_mark(case, FAULT, variant.name), case, variant) for variant in legitimate]
        if case.reference is None:
            continue  # a golden knows no other prompt
        for number, prompt in enumerate(draw_prompts(case.prompt, draws, seed), 1):
            drawn = _mark(replace(case, prompt=prompt, golden=None), DRAW, str(number))
            trials.append(Trial(drawn, case, None, number))
            trials += [Trial(_mark(drawn, FAULT, variant.name), case, variant, number) for variant in legitimate]
    return trials


def run_trials(
    trials: Sequence[Trial],
    reporters: Sequence[Reporter] = (),
    *,
    settings: Settings | None = None,
) -> tuple[dict[str, CaseResult], ExitCode]:
    """Run all trials at once, so that engines are loaded and references computed once.

    Args:
        trials: what to run.
        reporters: read the events beside us; they are closed in the end.
        settings: of the run; None is the built-in ones.

    Returns:
        The results by node id, and how the run as such ended: only an interruption is of interest.
    """
    planner, results = Planner(), Results()
    together = join_tensors([trial.case for trial in trials])
    for trial in trials:
        fault = None if trial.fault is None else trial.fault.name
        planner.add(trial.case, fault, together[_input_of(trial.case)])
    # A trial is meant to fail and to be left out: neither may end the run, nor change what a verdict means.
    options = replace(make_options(settings or Settings()), strict=False, max_fail=None, cache=None, diagnose=False)
    try:
        ended = Run(planner.build(), planner.environments, [results, *reporters], options).execute()
    finally:
        for reporter in reporters:
            reporter.close()
    return results.found, ended


def join_tensors(cases: Sequence[Case]) -> dict[str, tuple[str, ...]]:
    """Return the patterns that cases of one input ask for together: one request then serves all of them."""
    patterns: dict[str, dict[str, None]] = {}
    for case in cases:
        patterns.setdefault(_input_of(case), {}).update(dict.fromkeys(case.tensors))
    return {key: tuple(sorted(found)) for key, found in patterns.items()}


def _input_of(case: Case) -> str:
    """Return what cases must share to share a request, engines aside."""
    return repr((case.model, case.prompt, case.decode, case.candidate, case.reference, case.peer))


def make_matrix(trials: Sequence[Trial], results: dict[str, CaseResult]) -> Matrix:
    """Say what each trial means, against the same case and prompt without the change."""
    healthy = {
        (trial.original.node_id, trial.draw): results[trial.case.node_id] for trial in trials if trial.fault is None
    }
    skipped: dict[str, str] = {}
    entries: dict[str, list[tuple[str, Entry]]] = {}
    as_it_is = []
    for trial in trials:
        result = results[trial.case.node_id]
        name = trial.original.node_id + (f" draw {trial.draw}" if trial.draw else "")
        if result.verdict is Verdict.SKIPPED:
            skipped[trial.original.node_id] = result.failure.message if result.failure else "skipped"
        elif trial.fault is None:
            as_it_is.append(judge_result("", name, result, None))
        else:
            entry = judge_result(trial.fault.name, name, result, healthy[trial.original.node_id, trial.draw])
            entries.setdefault(trial.fault.name, []).append((trial.original.candidate.label, entry))
    return Matrix(
        make_rows([fault for fault in FAULTS if fault.name in entries], entries),
        make_rows([variant for variant in VARIANTS if variant.name in entries], entries),
        tuple(as_it_is),
        skipped,
    )


def _mark(case: Case, name: str, value: str) -> Case:
    golden = case.golden and replace(case.golden, case_id=case.golden.case_id or case.id)
    return replace(case, parameters=(*case.parameters, (name, value)), golden=golden)


class ProgressReporter(Reporter):
    """Shows a run's progress, and nothing else.

    Args:
        progress: what draws it.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def handle(self, event: Event) -> None:
        """Hand an event to the display."""
        self._progress.handle(event)

    def close(self) -> None:
        """Leave the terminal."""
        self._progress.close()
