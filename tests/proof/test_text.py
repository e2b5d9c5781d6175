"""A proof as text: what stands in the terminal, and in the tables of the documents."""

from __future__ import annotations

import math

import pytest

from specrunner.faults.model import Fault
from specrunner.proof.matrix import Entry, Matrix, Outcome, Row
from specrunner.proof.shares import Share
from specrunner.proof.text import format_factor, format_margins, format_markdown, format_matrix, format_share

FAULT = Fault("mask-causal", "mask", "sees no future")
OTHER = Fault("rope", "positions", "turns | too far")
VARIANT = Fault("variant-padded", "variant", "pads", legitimate=True)


def entry(case: str, outcome: Outcome, share: Share | None = None, message: str = "", fault: str = "f") -> Entry:
    first = "logits (kl)" if outcome is Outcome.CAUGHT else ""
    return Entry(fault, case, outcome, share, first, message)


def kl(value: float) -> Share:
    return Share(value, "logits", "kl")


CAUGHT = Row(
    FAULT,
    "hf/float32",
    (
        entry("a.yaml::one[engine=hf]", Outcome.CAUGHT, kl(1500.0)),
        entry("a.yaml::two[engine=hf]", Outcome.CAUGHT, kl(3.25)),
        entry("a.yaml::three[engine=hf]", Outcome.UNSEEN, kl(0.1)),
    ),
)
ABSENT = Row(OTHER, "hf/float32", (entry("a.yaml::one", Outcome.INAPPLICABLE, message="no rotary"),))
MISSED = Row(OTHER, "hf/bfloat16", (entry("a.yaml::one", Outcome.MISSED, kl(0.5)),))
QUIET = Row(
    VARIANT,
    "hf/float32",
    (entry("a.yaml::one", Outcome.MISSED, kl(0.25)), entry("a.yaml::two", Outcome.UNSEEN, kl(0.0))),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.inf, "exact"),
        (4.24, "4.2"),
        (99.4, "99"),
        (99.6, "100"),
        (1300.4, "1,300"),
        (999_999.0, "999,999"),
        (1e6, "1e+06"),
    ],
)
def test_factors(value: float, text: str) -> None:
    assert format_factor(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(None, "-"), (kl(0.374), "37%"), (kl(1.0), "100%"), (kl(1.04), "1"), (kl(math.inf), "exact")]
)
def test_shares(share: Share | None, text: str) -> None:
    assert format_share(share) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "exact"),
        ([math.inf], "exact"),
        ([3.0], "3"),
        ([3.0, 3.01], "3"),
        ([3.0, 5.0, 1500.0], "3 to 1,500"),
        ([3.0, math.inf], "3"),
    ],
)
def test_margins(values: list[float], text: str) -> None:
    assert format_margins(values) == text


def test_a_proof_in_columns() -> None:
    assert list(format_matrix(Matrix((CAUGHT, ABSENT), (QUIET,), skipped={"a.yaml::four": "no GPU"}))) == [
        "FAULT        CAUGHT BY  TIMES THE LIMIT  FIRST CAUGHT BY",
        "mask-causal  2 of 2     3.2 to 1,500     logits (kl) in one[engine=hf]",
        "rope         -                           inapplicable: no rotary",
        "",
        "LEGITIMATE VARIANT  ALARMS  OF THE LIMIT  WHERE",
        "variant-padded      0 of 2  25%           logits (kl) in one",
        "",
        "SKIPPED  a.yaml::four: no GPU",
        "1 of 1 fault caught, 0 false alarms in 2 runs of 1 legitimate variant",
    ]


def test_several_candidates_are_told_apart() -> None:
    lines = list(format_matrix(Matrix((CAUGHT, MISSED), ())))
    assert lines[1].startswith("mask-causal [hf/float32]  2 of 2")
    assert lines[2] == "rope [hf/bfloat16]        0 of 1                      NOT CAUGHT"
    assert lines[4:] == ["NOT CAUGHT  rope [hf/bfloat16]: turns | too far", "1 of 2 faults caught"]


def test_a_variant_without_evidence_or_measure() -> None:
    lost = Row(VARIANT, "hf/float32", (entry("a.yaml::one", Outcome.ERROR, message="killed", fault="variant-padded"),))
    assert list(format_matrix(Matrix((), (lost,)))) == [
        "LEGITIMATE VARIANT  ALARMS  OF THE LIMIT  WHERE",
        "variant-padded      -                     error: killed",
        "",
        "NO EVIDENCE  variant-padded: a.yaml::one: killed",
        "0 false alarms in 0 runs of 1 legitimate variant",
    ]
    unmeasured = Row(VARIANT, "hf/float32", (entry("a.yaml::one", Outcome.UNSEEN),))
    assert list(format_matrix(Matrix((), (unmeasured,))))[1] == "variant-padded      0 of 1  -"


def test_alarms_of_the_engine_as_it_is_come_first_and_not_all() -> None:
    healthy = entry("a.yaml::one", Outcome.CAUGHT, kl(2.0), "too far", fault="")
    broken = entry("a.yaml::two", Outcome.ERROR, message="killed", fault="")
    many = tuple(entry(f"a.yaml::{number}", Outcome.CAUGHT, kl(2.0), "far") for number in range(21))
    lines = list(format_matrix(Matrix((), (Row(VARIANT, "hf/float32", many),), (healthy, broken))))
    alarms = [line for line in lines if line.startswith("FALSE ALARM")]
    assert alarms[0] == "FALSE ALARM  no fault planted: a.yaml::one: logits (kl): too far"
    assert alarms[1] == "FALSE ALARM  f: a.yaml::0: logits (kl): far"
    assert len(alarms) == 20
    assert lines[-3:] == [
        "… and 2 more false alarms",
        "NO EVIDENCE  no fault planted: a.yaml::two: killed",
        "22 false alarms in 21 runs of 1 legitimate variant",
    ]


def test_nothing_is_proven_by_nothing() -> None:
    assert list(format_matrix(Matrix((), ()))) == ["nothing was proven"]
    assert list(format_markdown(Matrix((), ()))) == ["nothing was proven."]


def test_a_proof_as_tables() -> None:
    assert list(format_markdown(Matrix((CAUGHT, MISSED), (QUIET,)))) == [
        "| fault | caught by | times the limit | first caught by |",
        "| --- | --- | --- | --- |",
        "| `mask-causal [hf/float32]` | 2 of 2 | 3.2 to 1,500 | logits (kl) in one[engine=hf] |",
        "| `rope [hf/bfloat16]` | 0 of 1 |  | NOT CAUGHT |",
        "",
        "| legitimate variant | alarms | largest share of a limit | where |",
        "| --- | --- | --- | --- |",
        "| `variant-padded` | 0 of 2 | 25% | logits (kl) in one |",
        "",
        "1 of 2 faults caught, 0 false alarms in 2 runs of 1 legitimate variant.",
    ]
    piped = Row(OTHER, "hf/float32", (entry("a.yaml::one", Outcome.INAPPLICABLE, message="a | b"),))
    assert "| `rope` | - |  | inapplicable: a \\| b |" in list(format_markdown(Matrix((piped,), ())))
