"""What the schema cannot say: whether a case, once its fields are merged, makes sense."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from specrunner.spec.benchmark import check_benchmark
from specrunner.spec.coverage import (
    MAX_NUMBERS,
    count_numbers,
    find_uncovered,
    idle_patterns,
    needs_forward,
    needs_passes,
    vocabulary,
)
from specrunner.spec.decoding import check_decode
from specrunner.spec.diagnostics import Diagnostic, accepted_values
from specrunner.spec.golden_rules import find_unjudgeable
from specrunner.spec.merge import Fields, Layers, is_larger
from specrunner.spec.model import REFERENCE_DTYPES, Case, EngineChoice
from specrunner.spec.revisions import MODEL_WORDS, find_variable, is_commit, resolve_revision
from specrunner.spec.tensor_names import EXPERT_IDS, TEMPLATES, is_possible
from specrunner.spec.tree import Map

MAX_OPTION_VALUES = 1_000
"""Values that an engine's options may hold, see `is_larger`: each case has its own, and each is looked through."""

_ONE_MODEL = "state exactly one of `id`, `path` and `recipe`"
_ONE_PROMPT = "write `prompt: some text`, or a mapping with `text`, `messages` or `token_ids`"
_REFERENCE = "e.g. `reference: {engine: hf, dtype: float32}`"
_CHECKED = (
    *("options", "environments", "requires", "xfail", "reference", "model", "prompt"),
    *("decode", "tokens", "tensors", "tolerance", "attention", "golden", "benchmark"),
    *("trajectory", "at", "batch", "repeat"),
)


class CaseChecker:
    """Checks the cases of one file.

    Args:
        engines: names of all engines.
        recipes: names of all recipes, or None when they are not known.
        diagnostics: where to put what is found.
    """

    def __init__(self, engines: Sequence[str], recipes: Sequence[str] | None, diagnostics: list[Diagnostic]) -> None:
        self._engines = engines
        self._recipes = recipes
        self._diagnostics = diagnostics
        self._entry: Map | None = None
        self._checked: dict[tuple[object, ...], tuple[Fields, bool]] = {}

    def _report(
        self, layers: Layers, code: str, message: str, help: str | None, *path: str | int, at_key: bool = False
    ) -> bool:
        span = layers.span(*path, at_key=at_key)
        self._diagnostics.append(layers.source.diagnose(code, message, span, help))
        return False

    def _check_engine(self, layers: Layers, name: str, *path: str | int, at_key: bool = False) -> bool:
        if name in self._engines:
            return True
        advice = accepted_values(name, list(self._engines), "engines")
        return self._report(layers, "unknown-engine", f"unknown engine `{name}`", advice, *path, at_key=at_key)

    def check_shared(self, fields: Fields, layers: Layers) -> bool:
        """Check what is the same for all combinations of the matrix: the engines."""
        engines = fields.get("engines")
        if not engines:
            advice = "list them under `engines`, in the case or at the top of the spec"
            return self._report(layers, "no-engine", f"case `{fields['name']}` has no engine to run on", advice)
        found = [self._check_engine(layers, name, "engines", index) for index, name in enumerate(engines)]
        return all(found)

    def check_fields(self, fields: Fields, layers: Layers, algorithm_varies: bool = False) -> bool:
        """Check the merged fields of one combination, so far that a `Case` can be made of them.

        Args:
            fields: the merged fields.
            layers: where they were written.
            algorithm_varies: whether the matrix chooses how to decode, so that fields of the other algorithm may stand.
        """
        if layers.entry is not self._entry:
            self._entry, self._checked = layers.entry, {}
        # Most combinations of a matrix leave these fields alone, so one look serves them all.
        key = (algorithm_varies, *(id(fields.get(name)) for name in _CHECKED))
        if key not in self._checked:
            found = (
                self._check_names(fields, layers),
                self._check_options(fields, layers),
                self._check_input(fields, layers),
                check_decode(fields, functools.partial(self._report, layers), algorithm_varies=algorithm_varies),
                self._check_attention(fields, layers),
                fields.get("benchmark") is not None or self._check_states(fields, layers),
                self._check_purpose(fields, layers),
            )
            self._checked[key] = fields, all(found)
        return self._checked[key][1]

    def _check_names(self, fields: Fields, layers: Layers) -> bool:
        found = [self._check_engine(layers, name, "options", name, at_key=True) for name in fields.get("options", ())]
        named = fields.get("environments", ())
        found += [self._check_engine(layers, name, "environments", name, at_key=True) for name in named]
        for name in ("requires", "xfail"):
            engines = (fields.get(name) or {}).get("engines", ())
            found += [self._check_engine(layers, engine, name, "engines", i) for i, engine in enumerate(engines)]
        reference = fields.get("reference")
        if reference is not None:
            engine = reference.get("engine")
            if engine is None:
                message = "the reference has no engine"
                found.append(self._report(layers, "missing-key", message, _REFERENCE, "reference", at_key=True))
            else:
                found.append(self._check_engine(layers, engine, "reference", "engine"))
            peer = reference.get("peer", {}).get("engine")
            if peer is not None:
                found.append(self._check_engine(layers, peer, "reference", "peer", "engine"))
        return all(found)

    def _check_input(self, fields: Fields, layers: Layers) -> bool:
        model, prompt = fields.get("model"), fields.get("prompt")
        fine = True
        if model is None:
            fine = self._report(
                layers, "no-model", f"case `{fields['name']}` has no model", f"under `model`, {_ONE_MODEL}"
            )
        elif not any(kind in model for kind in ("id", "path", "recipe")):
            fine = self._report(layers, "no-model", "the model has no source", _ONE_MODEL, "model", at_key=True)
        elif "recipe" in model and self._recipes is not None and model["recipe"] not in self._recipes:
            advice = accepted_values(model["recipe"], list(self._recipes), "recipes")
            message = f"unknown recipe `{model['recipe']}`"
            fine = self._report(layers, "unknown-recipe", message, advice, "model", "recipe")
        fine = (model is None or self._check_trust(model, layers)) and fine
        if fields.get("benchmark") is not None:
            return fine
        if prompt is None:
            return self._report(layers, "no-input", f"case `{fields['name']}` has no prompt", _ONE_PROMPT)
        for index, other in enumerate((fields.get("batch") or {}).get("with", ())):
            fine = self._check_prompt(other, layers, "batch", "with", index) and fine
        return self._check_prompt(prompt, layers, "prompt") and fine

    def _check_prompt(self, prompt: Any, layers: Layers, *path: str | int) -> bool:
        if isinstance(prompt, str):
            return True
        if not any(kind in prompt for kind in ("text", "messages", "token_ids")):
            return self._report(layers, "no-input", "the prompt has no content", _ONE_PROMPT, *path, at_key=True)
        ids, length = prompt.get("token_ids"), prompt.get("length")
        if ids is not None and length is not None and length > len(ids):
            message = f"the prompt's length is {length:g}, but it has {len(ids)} token ids"
            advice = "a prompt is only ever cut, never padded"
            return self._report(layers, "too-short", message, advice, *path, "length")
        return True

    def _check_trust(self, model: Fields, layers: Layers) -> bool:
        """Let code and pickles of the hub run at one commit only: a branch or tag may hold others tomorrow."""
        allowed = [name for name in ("trust_remote_code", "allow_pickle") if model.get(name)]
        if "id" not in model or not allowed:
            return True
        written = model.get("revision")
        revision = resolve_revision(written, os.environ)
        variable = find_variable(written)
        if is_commit(revision) or (variable and revision == written):  # not set: the plan skips the case
            return True
        said = f"`{variable}` is `{revision}`" if variable else f"`{written}`" if written else "no revision is stated"
        message = f"`{allowed[0]}` needs the full hash of a commit: {said}"
        advice = "state `revision` with its 40 hex digits, or `$NAME` to take it from the environment variable NAME"
        return self._report(layers, "unpinned-code", message, advice, "model", "revision" if written else allowed[0])

    def _check_options(self, fields: Fields, layers: Layers) -> bool:
        """What may run, and at which revision, is said in one place, so that one place shows it."""
        reference = fields.get("reference") or {}
        places: list[tuple[Any, tuple[str, ...]]] = [
            *((options, ("options", engine)) for engine, options in (fields.get("options") or {}).items()),
            (reference.get("options"), ("reference", "options")),
            ((reference.get("peer") or {}).get("options"), ("reference", "peer", "options")),
        ]
        large = [path for options, path in places if is_larger(options, MAX_OPTION_VALUES)]
        for path in large:
            message = f"the options hold more than {MAX_OPTION_VALUES:,} values"
            advice = "put what is long into a file, and its path into the options"
            self._report(layers, "too-large", message, advice, *path, at_key=True)
        if large:
            return False
        found = [(*path, name) for options, path in places for name in MODEL_WORDS if name in (options or ())]
        for path in found:
            advice = f"write `model: {{…, {MODEL_WORDS[path[-1]]}: …}}`"
            self._report(layers, "conflicting-keys", f"`{path[-1]}` belongs to the model", advice, *path, at_key=True)
        return not found

    def _check_states(self, fields: Fields, layers: Layers) -> bool:
        """Check `trajectory`, `at` and `batch`."""
        fine = True
        decode, tensors = fields.get("decode"), fields.get("tensors") or list(fields.get("tolerance") or ())
        diffusion = decode is not None and decode.get("algorithm") == "low_confidence"
        for name in ("trajectory", "at"):
            if name in fields and not diffusion:
                advice = (
                    "e.g. `decode: {max_new_tokens: 64, algorithm: low_confidence, block_length: 32, threshold: 0.95}`"
                )
                message = f"`{name}` needs block-diffusion decoding"
                fine = self._report(layers, "no-decode", message, advice, name, at_key=True)
        if fields.get("trajectory") == "exact" and fields.get("reference") is None:
            message = f"case `{fields['name']}` compares trajectories, but has no reference"
            fine = self._report(
                layers, "no-reference", message, f"{_REFERENCE}, or `trajectory: sampler`", "trajectory"
            )
        if "at" not in fields:
            return fine
        if not tensors:
            message = "`at` says where tensors are taken, and the case has none"
            fine = self._report(layers, "no-check", message, "list `tensors` with their `tolerance`", "at", at_key=True)
        for name in ("tokens", "trajectory", "attention", "batch"):
            if name in fields:
                message = f"a case with `at` compares tensors of one state, and so cannot have `{name}`"
                fine = self._report(layers, "conflicting-keys", message, "make it a case of its own", name, at_key=True)
        if needs_passes(tuple(tensors)):
            message = "`passes.*` tensors belong to a whole decode, and `at` names one state of it"
            fine = self._report(layers, "conflicting-keys", message, "take `logits`, or remove `at`", "at", at_key=True)
        return fine

    def _check_attention(self, fields: Fields, layers: Layers) -> bool:
        attention = fields.get("attention")
        if attention is None:
            return True
        geometry, fine = attention["geometry"], True
        owners = {"block_length": "block_causal", "window": "sliding_window", "matrix": "matrix"}
        for name, owner in owners.items():
            if geometry == owner and name not in attention:
                message = f"geometry `{geometry}` needs `{name}`"
                fine = self._report(layers, "missing-key", message, f"state `{name}`", "attention", "geometry")
            elif geometry != owner and name in attention:
                message = f"`{name}` means nothing to the geometry `{geometry}`"
                advice = f"remove it, or set `geometry: {owner}`"
                fine = self._report(layers, "conflicting-keys", message, advice, "attention", name, at_key=True)
        rows = attention.get("matrix", ())
        for index, row in enumerate(rows):
            if len(row) != len(rows):
                message = f"row {index} of the matrix has {len(row)} columns, and there are {len(rows)} rows"
                advice = "the matrix is square: a row and a column for each prompt token"
                fine = self._report(layers, "bad-value", message, advice, "attention", "matrix", index)
        return fine

    def _check_purpose(self, fields: Fields, layers: Layers) -> bool:
        if fields.get("benchmark") is not None:
            return self._check_repeat(fields, layers) and check_benchmark(
                fields, functools.partial(self._report, layers)
            )
        name = fields["name"]
        tokens, decode, tolerance = fields.get("tokens"), fields.get("decode"), fields.get("tolerance")
        tensors = fields.get("tensors", tolerance and list(tolerance))
        stepwise = "trajectory" in fields or "at" in fields
        if not tensors and not tokens and not stepwise and "attention" not in fields:
            advice = "list `tensors` with their `tolerance`, `decode` with `tokens: exact`, or `attention`"
            return self._report(layers, "no-check", f"case `{name}` checks nothing", advice)
        fine = True
        if tokens and decode is None:
            advice = "e.g. `decode: {max_new_tokens: 32}`"
            fine = self._report(layers, "no-decode", "`tokens` needs `decode`", advice, "tokens", at_key=True)
        golden = find_unjudgeable(fields) if fields.get("golden") else []
        for path, message, advice in golden:
            fine = self._report(layers, "golden-rule", message, advice, *path, at_key=True)
        if fields.get("reference") is None and not fields.get("golden") and (tensors or tokens):
            what = "tensors" if tensors else "tokens"
            message = f"case `{name}` compares {what}, but has no reference"
            fine = self._report(layers, "no-reference", message, _REFERENCE)
        return self._check_patterns(fields, layers, tuple(tensors or ())) and fine

    def _check_repeat(self, fields: Fields, layers: Layers) -> bool:
        """A benchmark's score has its noise from the questions; the same ones again would only seem to be more."""
        if fields.get("repeat", 1) == 1:
            return True
        message = f"case `{fields['name']}` is a benchmark, which is not repeated"
        advice = "write `repeat: 1` in this case; more `samples` make a score surer"
        return self._report(layers, "conflicting-keys", message, advice, "repeat", at_key=True)

    def _check_patterns(self, fields: Fields, layers: Layers, tensors: tuple[str, ...]) -> bool:
        rules = tuple(fields.get("tolerance") or ())
        listed = "tensors" in fields
        fine = True
        numbers = count_numbers((*tensors, *rules))
        if numbers > MAX_NUMBERS:
            message = f"the patterns mention {numbers:,} layer numbers, more than {MAX_NUMBERS:,}"
            advice = "use wildcards, as in `layers.*.output`, or make several cases"
            return self._report(layers, "too-large", message, advice, "tolerance", at_key=True)
        for index, pattern in enumerate(tensors if listed else ()):
            fine = self._check_possible(layers, pattern, "tensors", index) and fine
        for pattern in rules:
            fine = self._check_possible(layers, pattern, "tolerance", pattern, at_key=True) and fine
            fine = self._check_kind(layers, pattern, fields["tolerance"][pattern]) and fine
        if not fine or not tensors:
            return fine
        uncovered = find_uncovered(tensors, rules) if listed else {}
        for index, pattern in enumerate(tensors if listed else ()):
            name = uncovered.get(pattern)
            if name is not None:
                pair = f"`{pattern}`" if name == pattern else f"`{pattern}` selects `{name}`, which"
                advice = "add it under `tolerance`: every tensor that is listed needs a rule"
                message = f"{pair} has no rule" if name != pattern else f"{pair} has no rule under `tolerance`"
                fine = self._report(layers, "no-rule", message, advice, "tensors", index)
        fine = self._check_idle(layers, tensors, rules) and fine
        decode = fields.get("decode")
        diffusion = decode is not None and decode.get("algorithm") == "low_confidence"
        if needs_passes(tensors) and not diffusion and not needs_forward(tensors):
            advice = "denoising passes exist with `decode: {algorithm: low_confidence, …}` alone"
            return self._report(
                layers, "no-decode", "`passes.*` needs block-diffusion decoding", advice, "tolerance", at_key=True
            )
        used = fields.get("tokens") or needs_passes(tensors) or "trajectory" in fields or "at" in fields
        if decode is not None and not used and "decode" in layers.entry:
            advice = "add `tokens: exact`, or remove `decode`"
            return self._report(
                layers, "unused-decode", "nothing checks what is generated", advice, "decode", at_key=True
            )
        return fine

    def _check_possible(self, layers: Layers, pattern: str, *path: str | int, at_key: bool = False) -> bool:
        if is_possible(pattern):
            return True
        advice = accepted_values(pattern, vocabulary(), "names")
        message = f"no tensor name can match `{pattern}`"
        return self._report(layers, "impossible-pattern", message, advice, *path, at_key=at_key)

    def _check_kind(self, layers: Layers, pattern: str, rules: str | Fields) -> bool:
        """Ids of experts are integers, which `exact` and `routing` judge, and `routing` judges nothing else."""
        fine = True
        ids = is_possible(pattern, (EXPERT_IDS,))
        only_ids = ids and not is_possible(pattern, tuple(name for name in TEMPLATES if name != EXPERT_IDS))
        for rule in () if isinstance(rules, str) else rules:
            if rule == "routing" and not ids:
                message = f"`routing` does not apply to `{pattern}`"
                advice = f"it judges the choice of experts: `{EXPERT_IDS.replace('{i}', '*')}`"
            elif rule not in ("exact", "routing") and only_ids:
                message = f"`{rule}` does not apply to `{pattern}`, whose values are integers"
                advice = "write `exact`, or `routing: {decisive: 1.0}`"
            else:
                continue
            fine = self._report(layers, "impossible-rule", message, advice, "tolerance", pattern, rule, at_key=True)
        return fine

    def _check_idle(self, layers: Layers, tensors: tuple[str, ...], rules: tuple[str, ...]) -> bool:
        """Report rules written beside the tensors they miss, or below a rule of the same mapping that hides them."""
        fine = True
        for pattern, hidden_by in idle_patterns(tensors, rules):
            owner = layers.owner("tolerance", pattern)
            if hidden_by is None and owner is not None and owner is layers.owner("tensors"):
                advice = "list the tensor under `tensors`, or remove the rule"
                message = f"rule for `{pattern}`, but no listed tensor matches it"
                fine = self._report(layers, "unused-rule", message, advice, "tolerance", pattern, at_key=True)
            elif hidden_by is not None and owner is not None and owner is layers.owner("tolerance", hidden_by):
                advice = "the first pattern that matches wins: put the narrower one first"
                message = f"the rule for `{pattern}` is never reached: `{hidden_by}` comes first"
                fine = self._report(layers, "unused-rule", message, advice, "tolerance", pattern, at_key=True)
        return fine

    def check_case(self, case: Case, layers: Layers) -> bool:
        """Check the finished case: it must not be compared with itself, nor its noise be measured on itself."""
        if case.reference is None or not (case.tensors or case.tokens or case.trajectory or case.benchmark):
            return True
        if case.reference == case.candidate and not case.batch:
            choice = case.candidate
            message = f"candidate and reference are the same ({choice.label} on {choice.device}): this compares nothing"
            excluded = ", ".join(f"{name}: {value}" for name, value in case.parameters)
            advice = (
                "give the reference another engine, dtype or options (the spec's `options` hold for both, those under "
                f"`reference` for it alone), or exclude the case: `matrix: {{exclude: [{{{excluded}}}]}}`"
            )
            return self._report(layers, "self-comparison", message, advice, "reference", at_key=True)
        return case.peer is None or self._check_peer(case.peer, case, case.reference, layers)

    def _check_peer(self, peer: EngineChoice, case: Case, reference: EngineChoice, layers: Layers) -> bool:
        if reference.dtype not in REFERENCE_DTYPES:
            message = f"a noise floor cannot be measured from a reference in {reference.dtype}"
            advice = f"accepted: {', '.join(f'`{dtype}`' for dtype in REFERENCE_DTYPES)}"
            return self._report(layers, "bad-value", message, advice, "reference", "dtype")
        if peer == case.candidate:
            message = f"the peer is the candidate itself ({peer.label}): its noise floor would excuse anything"
        elif peer == reference:
            message = f"the peer is the reference itself ({peer.label}): it has no noise"
        else:
            return True
        advice = "state another one, e.g. `peer: {engine: hf, options: {attn_implementation: eager}}`"
        return self._report(layers, "self-comparison", message, advice, "reference", "peer", at_key=True)
