"""Narrowing cases by keywords, tags and parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.errors import NothingVerified, UsageError
from specrunner.spec.keywords import compile_keywords
from specrunner.spec.model import Case, EngineChoice, Location, Model, Prompt
from specrunner.spec.select import Selection, parse_parameter, select_cases


def make(name: str, engine: str = "hf", dtype: str = "float32", tags: tuple[str, ...] = (), **axes: str) -> Case:
    return Case(
        suite="specs/smoke",
        name=name,
        parameters=(("engine", engine), *axes.items()),
        location=Location("specs/smoke.yaml", 1, 1),
        candidate=EngineChoice(engine, dtype),
        reference=None,
        model=Model(id="a"),
        prompt=Prompt(text="hi"),
        tags=tags,
    )


CASES = (
    make("capital", tags=("fast", "slow"), dtype="bfloat16"),
    make("capital", engine="vllm", threshold="1e-3"),
    make("tokens", engine="oracle", dtype="float64", tags=("fast",), mode="eager"),
)


def names(selection: Selection) -> list[str]:
    return [case.id for case in select_cases(CASES, selection)]


def test_everything_is_selected_by_default() -> None:
    assert select_cases(CASES, Selection()) == CASES


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("capital", 2),
        ("CAPITAL", 2),
        ("not capital", 1),
        ("capital and vllm", 1),
        ("capital or tokens", 3),
        ("fast and not slow", 1),
        ("not (capital or tokens) or vllm", 1),
        ("smoke", 3),
        ("engine=hf", 1),
        ("tokens[engine=oracle,mode=eager]", 1),
        ("not not vllm", 1),
        ("(((vllm)))", 1),
        ("vllm or oracle and not tokens", 1),
    ],
)
def test_keywords(expression: str, count: int) -> None:
    assert len(names(Selection(keywords=expression))) == count


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("and", "expected a word before `and`"),
        ("a and", "missing at the end"),
        ("a not", r"`not` cannot stand here \(column 3"),
        ("(a", r"a `\)` is missing"),
        ("a)", r"`\)` cannot stand here \(column 2"),
        ("()", r"expected a word before `\)`"),
        ("not", "missing at the end"),
        ("(" * 5000 + "a", "nested more than"),
        ("not " * 5000 + "a", "nested more than"),
    ],
)
def test_malformed_keywords_are_usage_errors(expression: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compile_keywords(expression)


@given(st.text(alphabet=st.sampled_from("ab ()andotr")))
def test_any_expression_compiles_or_is_a_usage_error(text: str) -> None:
    try:
        matches = compile_keywords(text)
    except UsageError:
        return
    assert matches(["ab"]) in (True, False)


LEAVES = st.sampled_from(["a", "b", "c"])
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: (
        inner.map(lambda e: f"not ({e})")
        | st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})")
    ),
)


@given(EXPRESSIONS, st.sets(LEAVES))
def test_keywords_mean_what_python_means(expression: str, present: set[str]) -> None:
    expected = eval(expression, {name: name in present for name in "abc"})
    assert compile_keywords(expression)(sorted(present)) == expected


def test_tags_are_alternatives() -> None:
    assert len(names(Selection(tags=("slow",)))) == 1
    assert len(names(Selection(tags=("slow", "fast")))) == 2


@pytest.mark.parametrize(
    ("parameters", "count"),
    [
        ((("engine", "hf"),), 1),
        ((("engine", "hf"), ("engine", "vllm")), 2),
        ((("engine", "hf"), ("dtype", "bfloat16")), 1),
        ((("dtype", "float64"),), 1),
        ((("mode", "eager"),), 1),
        ((("threshold", "0.001"),), 1),
        ((("device", "auto"),), 3),
    ],
)
def test_parameters(parameters: tuple[tuple[str, str], ...], count: int) -> None:
    assert len(names(Selection(parameters=parameters))) == count


def test_conditions_all_hold() -> None:
    selection = Selection(keywords="capital", tags=("fast",), parameters=(("engine", "hf"),))
    assert names(selection) == ["capital[engine=hf]"]


def test_an_unknown_parameter_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="-p dtyp: no case has such a parameter") as raised:
        names(Selection(parameters=(("dtyp", "float32"),)))
    assert raised.value.help is not None
    assert "did you mean `dtype`?" in raised.value.help


def test_where_no_case_has_a_tag_none_is_listed() -> None:
    with pytest.raises(NothingVerified, match="no case has the tag `fast`") as raised:
        select_cases([make("capital")], Selection(tags=("fast",)))
    assert raised.value.help == "no case has any tag"


@pytest.mark.parametrize(
    ("selection", "message", "help"),
    [
        (Selection(parameters=(("engine", "sglang"),)), "no case has `engine=sglang`", "values of `engine`: `hf`"),
        (Selection(parameters=(("engine", "hf"), ("mode", "eager"))), "no case has `mode=eager`", "`eager`"),
        (Selection(tags=("fats",)), "no case has the tag `fats`", "did you mean `fast`?"),
        (Selection(keywords="zzz"), "no case matches `-k zzz`", "specrunner list"),
    ],
)
def test_an_empty_selection_says_why(selection: Selection, message: str, help: str) -> None:
    with pytest.raises(NothingVerified) as raised:
        names(selection)
    assert raised.value.message == message
    assert raised.value.exit_code == 5
    assert raised.value.help is not None
    assert help in raised.value.help


def test_no_cases_at_all_verify_nothing() -> None:
    with pytest.raises(NothingVerified, match="no cases here"):
        select_cases((), Selection())


def test_parameters_are_read_from_text() -> None:
    assert parse_parameter("a.b=c=d") == ("a.b", "c=d")
    for wrong in ("a", "=b", "a=", ""):
        with pytest.raises(UsageError, match="key=value"):
            parse_parameter(wrong)


@pytest.mark.parametrize(
    ("expression", "deep"),
    [
        ("not " * 99 + "x", False),
        ("not " * 100 + "x", True),
        ("(" * 99 + "x" + ")" * 99, False),
        ("(" * 100 + "x" + ")" * 100, True),
        (" and ".join(["x"] * 300), False),
        (" or ".join(["x"] * 60) + " or " + "not " * 100 + "x", True),
        (" or ".join(["(x)"] * 60) + " or " + "not " * 99 + "x", False),
    ],
)
def test_only_what_stands_inside_another_is_nested(expression: str, deep: bool) -> None:
    if deep:
        with pytest.raises(UsageError, match="nested more than 100 deep"):
            compile_keywords(expression)
    else:
        assert compile_keywords(expression)(["x"]) == (expression.count("not") % 2 == 0 or " or " in expression)


@pytest.mark.parametrize(
    ("expression", "column"),
    [("", None), ("a b", 3), ("a and", 6), ("(a", 3), ("a )", 3), ("or a", 1), ("  a  not", 6)],
)
def test_a_mistake_in_an_expression_is_located(expression: str, column: int | None) -> None:
    with pytest.raises(UsageError) as caught:
        compile_keywords(expression)
    assert column is None or f"(column {column} of `{expression}`)" in caught.value.message


def test_parameters_of_every_case_and_of_some() -> None:
    assert names(Selection(parameters=(("mode", "eager"),))) == ["tokens[engine=oracle,mode=eager]"]
    assert len(names(Selection(parameters=(("dtype", "float32"), ("dtype", "float64"))))) == 2
    with pytest.raises(NothingVerified, match="no case has `engine=oracle`"):
        names(Selection(parameters=(("dtype", "float32"), ("engine", "oracle"))))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("0.001", True),
        ("1e-3", True),
        ("1E-3", True),
        ("0.0010", True),
        ("0.002", False),
        ("1e-3x", False),
        ("9" * 999, False),
    ],
)
def test_numbers_are_compared_as_numbers(value: str, found: bool) -> None:
    selection = Selection(parameters=(("threshold", value),))
    if found:
        assert names(selection) == ["capital[engine=vllm,threshold=1e-3]"]
    else:
        with pytest.raises(NothingVerified):
            names(selection)


def test_true_is_no_number() -> None:
    case = make("c", flag="1")
    with pytest.raises(NothingVerified):
        select_cases([case], Selection(parameters=(("flag", "true"),)))
