"""Where a failing case first went wrong, and what the pattern of its errors says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from specrunner.checks.measurements import encode_number
from specrunner.results import CheckResult, Diagnosis, select_side
from specrunner.spec.tensor_names import TEMPLATES, model_order

CLEAN = 0.1
"""A local error is clean when it is at most this share of the module's error in the run."""

_SUSPECT = "first wrong at "
"""How the finding begins that suspects a part; nobody is suspected when every layer is right by itself."""

_CULPRITS = {
    "embeddings": "the embedding table, or the token ids that reached it",
    "attention.query": "the query projection or the norm of the queries",
    "attention.key": "the key projection or the norm of the keys",
    "attention.value": "the value projection",
    "attention.output": "RoPE, the mask, the scale, the key-value cache or the output projection",
    "router.logits": "the router's weights or dtype, or the norm before it",
    "router.expert_ids": "the choice of experts: score function, bias, groups or top-k",
    "router.expert_weights": "the weights of the chosen experts: normalisation or scaling",
    "mlp.output": "the feed-forward network: experts, shared expert, scaling or their sum",
    "output": "the residual stream or a norm",
    "final_norm": "the final norm",
    "logits": "the head",
}


def diagnose(checks: Sequence[CheckResult]) -> Diagnosis | None:
    """Read a failing case's checks against what the first failed one was held against.

    Args:
        checks: in model order.

    Returns:
        The diagnosis; None when no check on a tensor was made.
    """
    checks = select_side(checks)
    tensors = [check for check in checks if model_order(check.subject)[2] < len(TEMPLATES) and check.rule != "evidence"]
    if not tensors:
        return None
    growth = _trace_growth(tensors)
    first = next((check for check in tensors if check.fails), None)
    if first is None:
        return Diagnosis(growth=growth, findings=_read_pattern(tensors, None))
    token = _worst_token(first)
    return Diagnosis(first.subject, token, _factor(first), _read_pattern(tensors, first), growth)


def add_local_errors(
    diagnosis: Diagnosis, led: Mapping[str, Any], reference: Any, checks: Sequence[CheckResult] = ()
) -> Diagnosis:
    """Add what the candidate computed with each layer fed by the reference.

    Args:
        diagnosis: of the ordinary run.
        led: stored captures by lead: `inputs`, and `routing` (the reference's experts replayed as well).
        reference: the reference's stored capture.
        checks: of the ordinary run.

    Returns:
        The diagnosis with `local` errors, and a finding that names the modules at fault.
    """
    from specrunner.checks.sources import open_tensors
    from specrunner.checks.tensors import measure_all

    theirs = open_tensors(reference.tensors_path)
    errors: dict[str, dict[str, float]] = {}
    for lead, capture in led.items():
        if capture.tensors_path is None:
            continue
        ours = {name: source for name, source in open_tensors(capture.tensors_path).items() if name in theirs}
        held = {name: theirs[name] for name in ours}
        errors[lead] = {
            one.name: math.inf if one.measured.non_finite.unmatched else one.measured.rel_l2
            for one in measure_all(ours, held)
            if one.measured is not None
        }
    local = errors.get("inputs", {})
    if not local:
        return diagnosis
    guilty = _find_guilty(diagnosis, local, checks)
    findings = [_read_local(guilty), *_read_replay(guilty, local, errors.get("routing", {}))]
    pattern = diagnosis.findings if guilty else [one for one in diagnosis.findings if not one.startswith(_SUSPECT)]
    rows = tuple({"tensor": name, "error": encode_number(error)} for name, error in local.items())
    return Diagnosis(
        diagnosis.tensor,
        diagnosis.token,
        diagnosis.factor,
        (*findings, *pattern),
        diagnosis.growth,
        rows,
    )


def _trace_growth(tensors: Sequence[CheckResult]) -> tuple[Mapping[str, Any], ...]:
    rows: dict[str, dict[str, Any]] = {}
    for check in tensors:
        numbers = check.measurements
        if "relative_l2" not in numbers:
            continue
        row = rows.setdefault(
            check.subject, {"tensor": check.subject, "error": numbers["relative_l2"], "floor": None, "limit": None}
        )
        if "peer_relative_l2" in numbers:
            row["floor"] = numbers["peer_relative_l2"]
        limit = _limit_of(check)
        if limit is not None and (row["limit"] is None or limit < row["limit"]):
            row["limit"] = limit
    return tuple(rows.values())


def _limit_of(check: CheckResult) -> float | None:
    """Return a check's limit as a relative L2 error, where it can be said as one."""
    if check.rule == "noise_floor" and isinstance(check.measurements.get("peer_relative_l2"), float):
        return float(check.limits["k"]) * float(check.measurements["peer_relative_l2"])
    if check.rule == "sqnr":
        return float(10 ** (-check.limits["min"] / 20))
    return 0.0 if check.rule == "exact" else None


def _factor(check: CheckResult) -> float | None:
    """Return how many times its floor (or, without one, its limit) the first wrong tensor's error is."""
    numbers = check.measurements
    for name in ("floor_ratio_by_token", "floor_ratio"):
        if isinstance(numbers.get(name), int | float):
            return float(numbers[name])
    if check.rule == "sqnr" and isinstance(numbers.get("min_sqnr"), int | float):
        return float(10 ** ((check.limits["min"] - numbers["min_sqnr"]) / 20))
    if check.rule == "cosine" and check.limits["min"] < 1 and isinstance(numbers.get("min_cosine"), int | float):
        return float((1 - numbers["min_cosine"]) / (1 - check.limits["min"]))
    error, floor = numbers.get("relative_l2"), numbers.get("peer_relative_l2")
    if isinstance(error, float) and isinstance(floor, float) and floor > 0:
        return error / floor
    return None


def _worst_token(check: CheckResult) -> int | None:
    numbers = check.measurements
    if check.rule == "routing":
        return numbers["differing"][0]["token"] if numbers.get("differing") else None
    names = {"noise_floor": "floor_token", "cosine": "min_cosine_token", "sqnr": "min_sqnr_token", "kl": "max_kl_token"}
    token = numbers.get(names.get(check.rule, "max_relative_l2_token"))
    return token if isinstance(token, int) else None


def _read_pattern(tensors: Sequence[CheckResult], first: CheckResult | None) -> tuple[str, ...]:
    """Return what the errors say, the most telling first."""
    if first is None:
        return ("no tensor left its limit: look at the decoding",)
    failing = {check.subject for check in tensors if check.fails}
    compared = {check.subject for check in tensors}
    findings = [_name_culprit(first.subject, compared, failing)]
    sparse = _layers_of(name for name in compared if ".router." in name)
    layer = _layer_of(first.subject)
    clean_before = sorted(_layers_of(compared) - _layers_of(failing))
    if layer is not None and sparse and layer == min(sparse) and clean_before and max(clean_before) < layer:
        findings.append(
            f"{_name_layers(clean_before)} clean and layer {layer}, the first with routed experts, is not: "
            "a fault of the mixture of experts"
        )
    elif layer is not None and layer > 0 and not [name for name in failing if (_layer_of(name) or 0) < layer]:
        earlier = sorted(number for number in _layers_of(compared) if number < layer)
        if earlier:
            findings.append(f"{_name_layers(earlier)} within the limits")
    findings += _read_tokens(first)
    later = [name for name in failing if model_order(name) > model_order(first.subject)]
    if not later and len(compared) > 1 and first.subject not in ("logits", "tokens"):
        findings.append("what comes after it is within its limits again")
    return tuple(findings)


def _name_culprit(subject: str, compared: set[str], failing: set[str]) -> str:
    kind = re.sub(r"^layers\.\d+\.", "", subject)
    suspects = _CULPRITS.get(kind, "this module")
    layer = _layer_of(subject)
    if kind == "output" and layer is not None:
        inner = {name for name in compared if _layer_of(name) == layer} - {subject}
        if not inner:
            parts = f"layers.{layer}.attention.* and layers.{layer}.mlp.output"
            return f"{_SUSPECT}{subject}: compare {parts} to see which part"
    if kind == "mlp.output" and layer is not None:
        router = [name for name in compared if name.startswith(f"layers.{layer}.router.")]
        if router and not failing.intersection(router):
            suspects = "the experts, the shared expert or their sum, since the router agrees"
    return f"{_SUSPECT}{subject}: suspect {suspects}"


def _read_tokens(first: CheckResult) -> list[str]:
    """Return what the distribution over the tokens says."""
    errors = first.measurements.get("token_errors")
    if not isinstance(errors, Mapping) or errors.get("tokens") != len(errors.get("largest", ())):
        return []
    values = [value if isinstance(value, int | float) else math.inf for value in errors["largest"]]
    if len(values) < 4:
        return []
    worst = max(values)
    order = sorted(range(len(values)), key=lambda token: -values[token])
    high = [token for token, value in enumerate(values) if value > worst / 10 or value == worst == math.inf]
    if order[0] == 0 and worst > 2 * sorted(values)[len(values) // 2]:
        return ["position 0 is worst: what it must not see leaks in, or its position is off"]
    if high and high[0] > 0 and len(high) == len(values) - high[0]:
        return [f"clean up to token {high[0] - 1}, wrong from token {high[0]} on"]
    if len(high) == 1 and len(values) > 8:
        return [f"token {high[0]} alone is wrong"]
    return []


def _find_guilty(diagnosis: Diagnosis, local: Mapping[str, float], checks: Sequence[CheckResult]) -> list[str]:
    """Return the outputs whose local error alone leaves what they are allowed.

    That is the limit or the floor where it can be said as a relative L2 error, and the angle that `cosine` allows (an
    error of sqrt(1 - min²) cannot turn a vector further); else the run's own error of a tensor that was within its
    limits, and a share of it of one that was not.
    """
    rows = {row["tensor"]: row for row in diagnosis.growth}
    passed = {check.subject for check in checks} - {check.subject for check in checks if check.fails}
    angles: dict[str, float] = {}
    for check in checks:
        if check.rule == "cosine":
            angle = math.sqrt(max(0.0, 1 - float(check.limits["min"]) ** 2))
            angles[check.subject] = min(angle, angles.get(check.subject, angle))
    guilty = []
    for name, error in local.items():
        row = rows.get(name, {})
        bounds = [value for value in (row.get("limit"), row.get("floor"), angles.get(name)) if isinstance(value, float)]
        share = 1.0 if name in passed else CLEAN
        bound = bounds[0] if bounds else share * row["error"] if isinstance(row.get("error"), float) else 0.0
        exact = row.get("limit") == 0.0 and row.get("floor") is None
        if (
            error > bound
            and (bound > 0 or exact)
            and (name.endswith(".output") or name in ("final_norm", "logits", "embeddings"))
        ):
            guilty.append(name)
    return guilty


def _read_local(guilty: Sequence[str]) -> str:
    layers = sorted({layer for name in guilty if (layer := _layer_of(name)) is not None})
    if not guilty:
        return "fed with the reference's inputs, every layer is within its limit: the errors only accumulate"
    if not layers:
        return f"fed with the reference's inputs, {guilty[0]} alone is wrong"
    return f"fed with the reference's inputs, {_name_layers(layers)} wrong without help, first at {guilty[0]}"


def _read_replay(guilty: Sequence[str], local: Mapping[str, float], replayed: Mapping[str, float]) -> list[str]:
    sparse = [
        name
        for name in guilty
        if name.endswith("mlp.output")
        and name in replayed
        and name.replace("mlp.output", "attention.output") not in guilty
        and name.replace("mlp.output", "router.logits") in local
    ]
    if not sparse:
        return []
    worst = max(sparse, key=lambda name: local[name])
    if replayed[worst] >= 0.5 * local[worst]:
        return [f"with the reference's experts replayed, {worst} stays wrong: the experts are at fault, not the router"]
    if replayed[worst] <= CLEAN * local[worst]:
        return [f"with the reference's experts replayed, {worst} is clean: the router is at fault, not the experts"]
    return []


def _layer_of(name: str) -> int | None:
    found = re.match(r"layers\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def _layers_of(names: Any) -> set[int]:
    return {layer for name in names if (layer := _layer_of(name)) is not None}


def _name_layers(numbers: Sequence[int]) -> str:
    return f"layer {numbers[0]} is" if len(numbers) == 1 else f"layers {_span(numbers)} are"


def _span(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))
