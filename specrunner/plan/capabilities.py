"""Cases against what their engines can do, before any engine starts: dtypes, decoding algorithms, tensor names."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from specrunner.benchmark_record import locate_answers
from specrunner.catalogue.tasks import TASKS
from specrunner.engines.base import Capabilities, Engine
from specrunner.engines.name_maps import load_maps
from specrunner.engines.named_checkpoints import Refusal, find_refusals
from specrunner.engines.registry import find_engine
from specrunner.environments.locks import Lock, find_locks, list_locks
from specrunner.spec.coverage import needs_passes, vocabulary
from specrunner.spec.diagnostics import ENOUGH, Diagnostic, accepted_values, sort_diagnostics
from specrunner.spec.loader import LoadedSpecs
from specrunner.spec.merge import Marks
from specrunner.spec.model import Benchmark, Case, Decode, EngineChoice, Model
from specrunner.spec.tensor_names import is_possible

_ADVICE = {
    "greedy": "e.g. `decode: {max_new_tokens: 16}`",
    "low_confidence": "e.g. `decode: {algorithm: low_confidence, block_length: 32, threshold: 0.95}`",
}
"""How to decode by the algorithm that a model knows."""

FindEngine = Callable[[str], type[Engine]]


def check_capabilities(loaded: LoadedSpecs, find: FindEngine = find_engine) -> LoadedSpecs:
    """Return the specs with a diagnostic for everything that a case asks of an engine in vain.

    Args:
        loaded: cases with marks, as `load_specs` makes them.
        find: looks an engine's class up by name.

    Raises:
        ConfigurationError: an engine that a case names cannot be loaded; the message names it.
    """
    checker = _Checker(find)
    for case in loaded.cases:
        if len(checker.diagnostics) >= ENOUGH:
            message = "the cases from here on were not held against what their engines can do"
            checker.diagnostics.append(Diagnostic("too-many", message, case.location))
            break
        checker.check(case)
    found = sort_diagnostics((*loaded.diagnostics, *checker.diagnostics))
    order = {path: rank for rank, path in enumerate(loaded.files)}
    found = tuple(sorted(found, key=lambda diagnostic: order.get(diagnostic.location.path, len(order))))
    return LoadedSpecs(loaded.cases, found, loaded.files)


class _Checker:
    def __init__(self, find: FindEngine) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._find = find
        self._capabilities: dict[str, Capabilities] = {}
        self._refusals: dict[tuple[str, int, int], list[Refusal]] = {}
        self._sound: set[tuple[Any, ...]] = set()

    @cached_property
    def _locks(self) -> dict[str, Lock]:
        """Read once: to read all lock files takes longer than everything else about a case."""
        return list_locks()

    def check(self, case: Case) -> None:
        """Check candidate, reference and peer of one case, unless one that asks for the same was found sound."""
        asked = _describe(case)
        if asked in self._sound:
            return
        known = len(self.diagnostics)
        self._check_roles(case)
        if len(self.diagnostics) == known and case.benchmark is None:
            self._sound.add(asked)

    def _check_roles(self, case: Case) -> None:
        self._check_role(case, case.candidate, "")
        if case.reference is not None:
            self._check_role(case, case.reference, "reference.")
        if case.peer is not None:
            self._check_role(case, case.peer, "reference.peer.")

    def _check_role(self, case: Case, choice: EngineChoice, prefix: str) -> None:
        engine = self._find(choice.engine)
        capabilities = self._capabilities.get(choice.engine)
        if capabilities is None:
            capabilities = self._capabilities[choice.engine] = engine.capabilities()
        self._check_dtype(case, choice, capabilities, prefix)
        self._check_options(case, choice, capabilities, prefix)
        if choice.environment is not None:
            self._check_environment(case, choice.engine, choice.environment)
        if case.decode is not None and case.decode.algorithm not in capabilities.algorithms:
            message = f"engine `{choice.engine}` cannot decode by `{case.decode.algorithm}`"
            advice = accepted_values("", capabilities.algorithms, "it can")
            self._report(case, "impossible-algorithm", message, advice, "decode.algorithm")
        elif case.decode is not None and case.benchmark is None:
            self._check_algorithm(case, case.decode, choice, engine)
        if case.decode is not None and case.decode.algorithm == "low_confidence" and case.benchmark is None:
            self._check_sampler(case, case.decode, choice, engine, prefix)
        if case.batch and not prefix and not capabilities.batches:
            message = f"engine `{choice.engine}` answers one prompt at a time"
            self._report(case, "impossible-batch", message, "take the engine or `batch` out of the case", "batch")
        if case.tensors:
            self._check_tensors(case, choice, engine)
        if case.benchmark is not None and not prefix:
            self._check_benchmark(case, case.benchmark)

    def _check_algorithm(self, case: Case, decode: Decode, choice: EngineChoice, engine: type[Engine]) -> None:
        architecture = architecture_of(case.model)
        known = engine.decode_algorithms(architecture, choice.options) if architecture is not None else None
        if known is None or decode.algorithm in known:
            return
        message = f"{case.model.label} decodes by {' or '.join(known)}, and the case by `{decode.algorithm}`"
        self._report(case, "impossible-algorithm", message, _ADVICE[known[0]], "decode")

    def _check_sampler(
        self, case: Case, decode: Decode, choice: EngineChoice, engine: type[Engine], prefix: str
    ) -> None:
        """An engine samples under the rule that the case states, or the case is none."""
        steps = decode.steps if decode.steps != decode.block_length else None
        for name, possible in engine.decode_rules(choice.options).items():
            value = steps if name == "steps" else getattr(decode, name)
            if value in possible:
                continue
            message = f"engine `{choice.engine}` cannot decode with `{name}: {_written(value)}`"
            can = ", ".join(f"`{name}: {_written(one)}`" for one in possible if one is not None)
            advice = f"its sampler does {can}: state that, and all engines follow the same rule" if can else None
            advice = advice or f"leave `{name}` out, and all engines follow the same rule"
            self._report(case, "impossible-sampler", message, advice, f"decode.{name}")
        if engine.reveals_passes(choice.options):
            return
        near_tie = case.tokens is not None and case.tokens.name == "near_tie"
        needed = (
            ("trajectory", case.trajectory is not None),
            ("at", case.at is not None and (prefix == "reference." or case.reference is None)),
            ("tokens", near_tie and prefix == "reference."),
            ("tensors", needs_passes(case.tensors)),
        )
        for field, asked in needed:
            if asked:
                message = f"engine `{choice.engine}` does not show the steps of its decode with these options"
                advice = "compare `tokens`, or let the adapter's own loop decode"
                self._report(case, "impossible-trajectory", message, advice, field)
                return

    def _check_dtype(self, case: Case, choice: EngineChoice, capabilities: Capabilities, prefix: str) -> None:
        devices = list(capabilities.dtypes) if choice.device == "auto" else [choice.device]
        possible = list(dict.fromkeys(dtype for device in devices for dtype in capabilities.dtypes.get(device, ())))
        if choice.dtype in possible:
            return
        where = "" if choice.device == "auto" else f" on {choice.device}"
        if not possible:
            message = f"engine `{choice.engine}` does not run{where}"
            self._report(
                case,
                "impossible-device",
                message,
                accepted_values("", list(capabilities.dtypes), "devices"),
                prefix + "device",
            )
            return
        message = f"engine `{choice.engine}` does not compute in {choice.dtype}{where}"
        self._report(case, "impossible-dtype", message, accepted_values("", possible, "dtypes"), prefix + "dtype")

    def _check_options(self, case: Case, choice: EngineChoice, capabilities: Capabilities, prefix: str) -> None:
        """Options say nothing past the case's model, so that one place shows what is loaded and may run."""
        places = {
            "": (),
            "reference.": (("reference", "options"),),
            "reference.peer.": (("reference", "peer", "options"), ("reference", "options")),
        }
        known = (choice.engine, id(choice.options), id(case.model))  # the cases, which live on, share most of them
        if known not in self._refusals:
            self._refusals[known] = find_refusals(choice.options, case.model, capabilities)
        for refusal in self._refusals[known]:
            marks = case.marks
            if not isinstance(marks, Marks):
                self.diagnostics.append(Diagnostic(refusal.code, refusal.message, case.location, help=refusal.help))
                continue
            written = [place for place in places[prefix] if marks.are_written(*place)]
            path = (*(written[0] if written else ("options", choice.engine)), *refusal.path)
            span = marks.span(*path, at_key=refusal.at_key)
            self.diagnostics.append(marks.source.diagnose(refusal.code, refusal.message, span, refusal.help))

    def _check_environment(self, case: Case, engine: str, name: str) -> None:
        locks = find_locks(name, self._locks)
        if locks and all(lock.engine == engine for lock in locks):
            return
        message = f"the environment `{name}` is not for `{engine}`" if locks else f"unknown environment `{name}`"
        known = [lock.name for lock in self._locks.values() if lock.engine == engine]
        self._report(
            case, "unknown-environment", message, accepted_values(name, known, "environments"), f"environments.{engine}"
        )

    def _check_benchmark(self, case: Case, benchmark: Benchmark) -> None:
        """Check that a baseline stays as it is, and that what is asked of log-likelihoods can be answered.

        A model that denoises blocks predicts no next token, so its log-likelihoods can only be estimated.
        """
        baseline = benchmark.baseline.file if benchmark.baseline is not None else None
        kept = locate_answers(case.suite, case.id)
        if baseline is not None and Path(baseline).resolve() == kept.resolve():
            message = "the baseline is the file in which every run leaves this case's own answers"
            advice = "each run would be held against the one before it: copy the file, and name the copy"
            self._report(case, "self-comparison", message, advice, "benchmark.baseline.file")
        known = load_maps("hf").get(architecture_of(case.model) or "")
        estimated = benchmark.evaluation.mask_samples is not None
        if known is not None and "greedy" in known.algorithms and estimated:
            message = f"{case.model.label} predicts the next token, so its log-likelihoods need no estimate"
            self._report(case, "impossible-likelihood", message, "take `likelihood` out", "benchmark.likelihood")
        if known is None or "greedy" in known.algorithms:
            return
        scored = [name for name in benchmark.evaluation.tasks if TASKS[name].likelihood]
        if scored and not estimated:
            message = f"`{scored[0]}` compares log-likelihoods, and the diffusion model {case.model.label} has none"
            advice = "take a task whose answers are generated: " + ", ".join(
                f"`{name}`" for name, task in TASKS.items() if not task.likelihood
            )
            advice += "; or state an estimate: `likelihood: {samples: 128}`"
            self._report(case, "impossible-likelihood", message, advice, "benchmark.task")
        elif len(scored) < len(benchmark.evaluation.tasks) and (
            case.decode is None or case.decode.algorithm not in known.algorithms
        ):
            message = f"{case.model.label} decodes by {' or '.join(known.algorithms)}, and the case by `greedy`"
            self._report(case, "impossible-algorithm", message, _ADVICE["low_confidence"], "benchmark.task")

    def _check_tensors(self, case: Case, choice: EngineChoice, engine: type[Engine]) -> None:
        architecture = architecture_of(case.model)
        if architecture is None:
            return
        templates = engine.tensor_templates(architecture)
        if templates is None:
            message = f"engine `{choice.engine}` has no map of tensor names for {architecture}"
            advice = "compare `tokens` alone, or write a name map (docs/how-to/add-a-name-map.md)"
            self._report(case, "no-name-map", message, advice, "tensors")
            return
        for index, pattern in enumerate(case.tensors):
            if not is_possible(pattern, tuple(templates)):
                message = f"engine `{choice.engine}` has no tensor `{pattern}` in {architecture}"
                advice = accepted_values(pattern, vocabulary(templates), "tensors")
                self._report(case, "impossible-tensor", message, advice, "tensors", index, pattern)

    def _report(
        self, case: Case, code: str, message: str, help: str, field: str, index: int | None = None, pattern: str = ""
    ) -> None:
        marks = case.marks
        if not isinstance(marks, Marks):
            self.diagnostics.append(Diagnostic(code, message, case.location, help=help))
            return
        path: tuple[str | int, ...] = tuple(field.split("."))
        at_key = index is None and field == "tensors"
        if index is not None:
            listed = "tensors" in marks
            path, at_key = (("tensors", index), False) if listed else (("tolerance", pattern), True)
        self.diagnostics.append(marks.source.diagnose(code, message, marks.span(*path, at_key=at_key), help))


def _describe(case: Case) -> tuple[Any, ...]:
    """Return all that the checks read of a case without a benchmark: options and models, which are shared, by identity.

    Cases that a matrix or a list of prompts makes differ in none of it.
    """
    choices = (
        (choice.engine, choice.environment, choice.dtype, choice.device, id(choice.options)) if choice else None
        for choice in (case.candidate, case.reference, case.peer)
    )
    rules = case.tokens and case.tokens.name, case.trajectory is None, case.at is None
    return *choices, id(case.model), case.decode, case.tensors, bool(case.batch), case.benchmark is None, rules


def _written(value: object) -> str:
    """Return a value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache(maxsize=256)
def architecture_of(model: Model) -> str | None:
    """Return the class in the checkpoint's `architectures`, where that is known without a network; else None."""
    if model.recipe is not None:
        from specrunner.catalogue.recipes import RECIPES

        recipe = RECIPES.get(model.recipe)
        return recipe.architecture if recipe is not None else None
    if model.path is None:
        return None
    try:
        config = json.loads((Path(model.path) / "config.json").read_text(encoding="utf-8"))
        return str(config["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError):
        return None
