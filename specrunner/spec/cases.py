"""Cases from a spec's tree: fields merged, the matrix expanded, every case checked for sense."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specrunner.spec.benchmark import needs_reference, read_benchmark
from specrunner.spec.consistency import CaseChecker
from specrunner.spec.diagnostics import ENOUGH, Diagnostic
from specrunner.spec.matrix import MAX_CASES, MAX_EXCLUDED, Choice, MatrixReader, expand
from specrunner.spec.merge import Fields, Layers, Marks, merge_fields, plain
from specrunner.spec.model import (
    Attention,
    Benchmark,
    Case,
    Decode,
    DenoisingState,
    EngineChoice,
    GoldenChoice,
    Model,
    Prompt,
    Tolerance,
    Xfail,
)
from specrunner.spec.revisions import resolve_revision
from specrunner.spec.rules import read_rules, read_token_rule, read_trajectory_rule
from specrunner.spec.schema import default_of
from specrunner.spec.source import Source
from specrunner.spec.tree import Map

_NOT_SHARED = ("version", "description", "defaults", "cases")


@dataclass(slots=True)
class CaseReader:
    """Reads the cases of one file.

    Attributes:
        source: the file.
        suite: its path without the extension.
        engines: names of all engines.
        recipes: names of all recipes, or None when they are not known.
        timeout: seconds for the cases that state none.
        diagnostics: what was found wrong.
    """

    source: Source
    suite: str
    engines: Sequence[str]
    recipes: Sequence[str] | None
    timeout: float = field(default_factory=lambda: float(default_of("timeout")))
    diagnostics: list[Diagnostic] = field(default_factory=list)
    _matrices: MatrixReader = field(default_factory=MatrixReader)
    _memory: dict[tuple[str, int], Any] = field(default_factory=dict)
    _alive: list[Any] = field(default_factory=list)
    _expanded: int = 0
    _dtype: str = field(default_factory=lambda: str(default_of("dtype")))
    _repeat: int = field(default_factory=lambda: int(default_of("repeat")))
    _device: str = field(default_factory=lambda: str(default_of("device")))

    def read(self, valid: Sequence[bool]) -> list[Case]:
        """Return the cases of the file, expanded, in order.

        Args:
            valid: for every entry under `cases`, whether it is valid under the schema; the others are left out.
        """
        root: Map = self.source.root
        defaults = root.get("defaults", {})
        shared = merge_fields(merge_fields({}, defaults), {k: v for k, v in root.items() if k not in _NOT_SHARED})
        below = tuple(layer for layer in (root, defaults) if isinstance(layer, Map))
        checker = CaseChecker(self.engines, self.recipes, self.diagnostics)
        first: dict[str, Map] = {}
        cases: list[Case] = []
        for entry, is_valid in zip(root["cases"], valid, strict=True):
            if not is_valid:
                continue
            if len(self.diagnostics) >= ENOUGH:
                break
            layers = Layers(self.source, (entry, *below), entry)
            name = entry["name"]
            if name in first:
                self._report_repeated(layers, name, first[name])
                continue
            first[name] = entry
            cases.extend(self._expand(merge_fields(shared, entry), layers, checker))
        self._matrices.finish()
        self.diagnostics.extend(self._matrices.diagnostics)
        return cases

    def _report_repeated(self, layers: Layers, name: str, first: Map) -> None:
        line = self.source.locate(first.values_at["name"][0]).line
        message = f"two cases are called `{name}`"
        note = (f"the first is at line {line}",)
        advice = "give each case a name of its own; an alias of a whole case repeats its name, too"
        self.diagnostics.append(self.source.diagnose("duplicate-id", message, layers.name_span(), advice, note))

    def _expand(self, fields: Fields, layers: Layers, checker: CaseChecker) -> list[Case]:
        matrix = fields.get("matrix", {})
        axes = self._matrices.read(matrix, layers)
        if axes is None or not checker.check_shared(fields, layers):
            return []
        engines = fields["engines"]
        count = len(engines)
        for axis in axes:
            count *= len(axis.choices)
        if self._expanded + count > MAX_CASES:
            span = layers.span("matrix", at_key=True)
            whole = " with those before it" if self._expanded else ""
            message = f"case `{fields['name']}` stands for {_show(count)} cases{whole}, more than {MAX_CASES:,}"
            advice = "split the file" if count <= MAX_CASES else "make the matrix smaller"
            self.diagnostics.append(self.source.diagnose("too-many-cases", message, span, advice))
            return []
        self._expanded += count
        labels = {axis.name: {choice.label for choice in axis.choices} for axis in axes}
        exclusions = self._matrices.exclusions(matrix, layers, {"engine": set(engines), **labels})
        if count * len(exclusions) > MAX_EXCLUDED:
            for exclusion in exclusions:  # what was not looked through is not idle
                exclusion.used = True
            span = layers.span("matrix", "exclude", at_key=True)
            message = (
                f"{len(exclusions):,} entries of `exclude` over {count:,} combinations are too many to look through"
            )
            advice = "make the matrix smaller, or exclude several values by one entry"
            self.diagnostics.append(self.source.diagnose("too-many-cases", message, span, advice))
            return []
        names = [axis.name for axis in axes]
        cases = []
        expanded = 0
        for engine, choices in expand(engines, axes, exclusions):
            expanded += 1
            if len(self.diagnostics) >= ENOUGH:
                break
            case = self._read_combination(fields, layers, engine, names, choices, checker)
            if case is not None:
                cases.append(case)
        if not expanded:
            span = layers.span("matrix", "exclude", at_key=True)
            message = f"every combination of case `{fields['name']}` is excluded"
            self.diagnostics.append(self.source.diagnose("no-cases", message, span, "leave at least one"))
        return cases

    def _read_combination(
        self,
        fields: Fields,
        layers: Layers,
        engine: str,
        names: Sequence[str],
        choices: Sequence[Choice],
        checker: CaseChecker,
    ) -> Case | None:
        if choices:
            for choice in choices:
                fields = merge_fields(fields, choice.change)
            layers = Layers(
                layers.source, (*(choice.change for choice in reversed(choices)), *layers.maps), layers.entry
            )
        chosen = any(name == "decode.algorithm" for name in names) or any("decode" in c.change for c in choices)
        if not checker.check_fields(fields, layers, algorithm_varies=chosen):
            return None
        tolerance = self._remember("tolerance", fields.get("tolerance", _NOTHING), lambda t: _tolerance(t, layers))
        decode = fields.get("decode")
        xfail = fields.get("xfail")
        candidate, reference = self._candidate(fields, engine), self._reference(fields)
        benchmark: Benchmark | None = None
        if fields.get("benchmark") is not None:
            benchmark = self._remember(
                "benchmark", fields["benchmark"], lambda written: read_benchmark(written, self.source.path)
            )
            reference = reference if needs_reference(fields["benchmark"]) else None
        case = Case(
            suite=self.suite,
            name=fields["name"],
            parameters=(("engine", engine), *((n, c.label) for n, c in zip(names, choices, strict=True))),
            location=self.source.locate(layers.entry.span[0]),
            candidate=candidate,
            reference=reference,
            model=self._remember("model", fields["model"], self._model),
            prompt=Prompt() if benchmark else self._remember("prompt", fields["prompt"], _prompt),
            tensors=tuple(fields["tensors"]) if "tensors" in fields else tuple(t.pattern for t in tolerance),
            tolerance=tolerance,
            decode=None if decode is None else self._remember("decode", decode, _decode),
            tokens=read_token_rule(fields["tokens"]) if "tokens" in fields else None,
            attention=self._remember("attention", fields["attention"], _attention) if "attention" in fields else None,
            trajectory=read_trajectory_rule(fields["trajectory"]) if "trajectory" in fields else None,
            at=self._remember("at", fields["at"], _state) if "at" in fields else None,
            batch=self._remember("batch", fields["batch"], _batch) if "batch" in fields else (),
            tags=tuple(fields.get("tags", ())),
            requires=self._remember("requires", fields.get("requires", _NOTHING), _requires),
            timeout=float(fields.get("timeout", self.timeout)),
            repeat=int(fields.get("repeat", self._repeat)),
            xfail=None if xfail is None else Xfail(xfail["reason"], tuple(xfail.get("engines", ()))),
            peer=self._peer(fields, candidate, reference) if _needs_peer(tolerance) else None,
            description=fields.get("description", ""),
            golden=_golden(fields.get("golden", False)),
            benchmark=benchmark,
            marks=Marks(layers),
        )
        return case if checker.check_case(case, layers) else None

    def _remember(self, kind: str, value: Any, make: Any) -> Any:
        """Make something from a part of the tree once, however many cases share the part."""
        key = (kind, id(value))
        if key not in self._memory:
            self._alive.append(value)
            self._memory[key] = make(value)
        return self._memory[key]

    def _candidate(self, fields: Fields, engine: str) -> EngineChoice:
        return EngineChoice(
            engine=engine,
            dtype=fields.get("dtype", self._dtype),
            device=fields.get("device", self._device),
            options=self._options(fields, engine),
            environment=_environment(fields, engine),
        )

    def _options(self, fields: Fields, engine: str) -> Mapping[str, Any]:
        options: Mapping[str, Any] = self._remember("options", fields.get("options", {}).get(engine, _NOTHING), plain)
        return options

    def _reference(self, fields: Fields) -> EngineChoice | None:
        reference = fields.get("reference")
        if reference is None:
            return None
        engine = reference["engine"]
        own = reference.get("options")
        return EngineChoice(
            engine=engine,
            dtype=reference.get("dtype", "float64" if engine == "oracle" else "float32"),
            device=reference.get("device", self._device),
            options=self._options(fields, engine) if own is None else self._remember("options", own, plain),
            environment=_environment(fields, engine),
        )

    def _peer(self, fields: Fields, candidate: EngineChoice, reference: EngineChoice | None) -> EngineChoice | None:
        if reference is None:
            return None
        peer = fields["reference"].get("peer", _NOTHING)
        engine = peer.get("engine", reference.engine)
        own = peer.get("options")
        if own is not None:
            options = self._remember("options", own, plain)
        else:
            options = reference.options if engine == reference.engine else self._options(fields, engine)
        return EngineChoice(
            engine, peer.get("dtype", candidate.dtype), reference.device, options, _environment(fields, engine)
        )

    def _model(self, model: Mapping[str, Any]) -> Model:
        path = model.get("path")
        if path is not None:
            path = Path(os.path.normpath(Path.cwd() / Path(self.source.path).parent / path)).as_posix()
        return Model(
            id=model.get("id"),
            path=path,
            recipe=model.get("recipe"),
            revision=resolve_revision(model.get("revision"), os.environ),
            trust_remote_code=model.get("trust_remote_code", False),
            allow_pickle=model.get("allow_pickle", False),
        )


_NOTHING: Mapping[str, Any] = {}


def _environment(fields: Fields, engine: str) -> str | None:
    name = fields.get("environments", _NOTHING).get(engine)
    return None if name is None else str(name)


def _show(count: int) -> str:
    return f"{count:,}" if count < 10**15 else "far too many"


def _tolerance(tolerance: Mapping[str, Any], layers: Layers) -> tuple[Tolerance, ...]:
    return tuple(
        Tolerance(pattern, read_rules(written), layers.location("tolerance", pattern, at_key=True))
        for pattern, written in tolerance.items()
    )


def _needs_peer(tolerance: Sequence[Tolerance]) -> bool:
    return any(rule.needs_peer for entry in tolerance for rule in entry.rules)


def _golden(golden: bool | Mapping[str, Any]) -> GoldenChoice | None:
    if golden is False:
        return None
    given = {} if golden is True else golden

    def number(name: str) -> int:
        return int(given.get(name, default_of("golden", name)))

    return GoldenChoice(
        full_tokens=number("full_tokens"),
        top_k=number("top_k"),
        projections=number("projections"),
        fallback=tuple(given.get("fallback", ())),
    )


def _prompt(prompt: str | Mapping[str, Any]) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    messages, token_ids, length = prompt.get("messages"), prompt.get("token_ids"), prompt.get("length")
    return Prompt(
        text=prompt.get("text"),
        messages=None if messages is None else tuple(plain(message) for message in messages),
        token_ids=None if token_ids is None else tuple(map(int, token_ids)),
        length=None if length is None else int(length),
        add_special_tokens=prompt.get("add_special_tokens", True),
    )


def _decode(decode: Mapping[str, Any]) -> Decode:
    algorithm = decode.get("algorithm", "greedy")
    diffusion = algorithm == "low_confidence"
    return Decode(
        max_new_tokens=int(decode.get("max_new_tokens", 1)),
        algorithm=algorithm,
        block_length=int(decode["block_length"]) if diffusion else None,
        threshold=float(decode["threshold"]) if diffusion else None,
        ignore_eos=decode.get("ignore_eos", False),
        accept=decode.get("accept", "gt") if diffusion else "gt",
        fallback=decode.get("fallback", "schedule") if diffusion else "schedule",
        steps=int(decode["steps"]) if diffusion and "steps" in decode else None,
        exclude_mask_id=decode.get("exclude_mask_id", False) if diffusion else False,
        eos_early_stop=decode.get("eos_early_stop", False) if diffusion else False,
    )


def _state(at: Mapping[str, Any]) -> DenoisingState:
    return DenoisingState(int(at.get("block", 0)), int(at.get("step", 0)))


def _batch(batch: Mapping[str, Any]) -> tuple[Prompt, ...]:
    return tuple(_prompt(prompt) for prompt in batch["with"])


def _attention(attention: Mapping[str, Any]) -> Attention:
    block_length, window, matrix = (attention.get(name) for name in ("block_length", "window", "matrix"))
    return Attention(
        geometry=attention["geometry"],
        block_length=None if block_length is None else int(block_length),
        window=None if window is None else int(window),
        matrix=None if matrix is None else tuple(matrix),
    )


def _requires(requires: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in requires.items()}
