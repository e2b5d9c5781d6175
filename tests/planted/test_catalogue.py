"""The registry: complete, told, and matched by planters."""

from __future__ import annotations

import importlib

import pytest

from specrunner.errors import UsageError
from specrunner.faults.bugs import FAULTS
from specrunner.faults.catalogue import check_patterns, find_faults, find_variants
from specrunner.faults.model import AREAS
from specrunner.faults.variants import VARIANTS


@pytest.mark.parametrize("engine", ["hf", "oracle", "vllm", "sglang"])
def test_every_fault_has_a_planter_and_every_planter_a_fault(engine: str) -> None:
    planters = importlib.import_module(f"specrunner.engines.planters.{engine}").PLANTERS
    assert set(planters) == {fault.name for fault in (*FAULTS, *VARIANTS) if engine in fault.engines}


@pytest.mark.parametrize("engine", ["hf", "oracle"])
def test_there_are_25_faults_in_every_area_and_what_is_legitimate(engine: str) -> None:
    faults = find_faults(engine)
    assert len(faults) >= 25
    assert {fault.area for fault in faults} == set(AREAS)
    assert len(find_variants("hf")) >= 10
    assert find_variants(engine)


def test_names_say_the_area_and_stories_are_one_line() -> None:
    names = [fault.name for fault in (*FAULTS, *VARIANTS)]
    assert len(names) == len(set(names))
    for fault in (*FAULTS, *VARIANTS):
        assert fault.name.startswith(f"{fault.area}-")
        assert fault.story and "\n" not in fault.story
        assert fault.legitimate == (fault.area == "variant")


def test_patterns_select_names_and_areas() -> None:
    assert {fault.area for fault in find_faults("hf", ["routing"])} == {"routing"}
    assert [fault.name for fault in find_faults("hf", ["mask-caus*"])] == ["mask-causal"]
    assert find_faults("oracle", ["mask-zero-one"]) == ()


def test_a_pattern_that_selects_nothing_of_what_can_be_planted_is_refused() -> None:
    check_patterns(["routing", "mask-caus*", "variant-padded"])
    check_patterns(["variant-padded", "variant"], faults=False)
    with pytest.raises(UsageError, match="no fault is called 'rooting'") as caught:
        check_patterns(["mask", "rooting"])
    assert caught.value.help == f"name a fault, a pattern, or an area: {', '.join(AREAS)}"
    with pytest.raises(UsageError, match="no fault is called 'variant-padded'"):
        check_patterns(["variant-padded"], variants=False)
    for pattern in ("nope", "mask-causal"):
        with pytest.raises(UsageError, match=f"no variant is called '{pattern}'") as caught:
            check_patterns([pattern], faults=False)
        assert caught.value.help == "`specrunner prove --list` names the variants"


def test_only_a_reason_hides_a_fault() -> None:
    offset = next(fault for fault in FAULTS if fault.name == "rope-offset")
    rounded = next(fault for fault in FAULTS if fault.name == "rope-frequencies-rounded")
    assert offset.why_invisible("float32") and offset.why_invisible("bfloat16")
    assert rounded.why_invisible("bfloat16") and not rounded.why_invisible("float32")
