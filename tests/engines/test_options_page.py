"""The page of engine options has what the adapters keep to themselves and what they set by default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from specrunner.engines.oracle import GEOMETRIES
from specrunner.engines.sglang import options as sglang
from specrunner.engines.vllm import options as vllm
from specrunner.requests import Session
from specrunner.spec.model import Model

PAGE = (Path(__file__).parents[2] / "docs" / "engine-options.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
OF_THE_CASE = {"model", "model_path", "dtype", "device", "revision", "trust_remote_code"}
OUR_OWN = {"worker_extension_cls"}


def read_rows(section: str) -> dict[str, list[str]]:
    """Return the cells of a section's tables behind the first of each row, which is a name in backticks."""
    rows = [line.strip("| ").split(" | ") for line in SECTIONS[section].splitlines() if line.startswith("| `")]
    return {name.strip("`"): cells for name, *cells in rows}


def read_value(cell: str) -> Any:
    """Return the value that a cell begins with; what is not in backticks is words."""
    return yaml.safe_load(cell.split("`")[1]) if cell.startswith("`") else None


def list_defaults(engine: str) -> list[Mapping[str, Any]]:
    """Return the keywords of sessions without options: of a causal model, on SGLang also of a diffusion model."""
    session = Session(engine, f"{engine}-cpu", Model(path="m"), "float32", "cpu", {})
    if engine == "sglang":
        return [
            sglang.plan_setup(session, "m", {}, (algorithm,)).keywords for algorithm in ("greedy", "low_confidence")
        ]
    config = {"architectures": ["LlamaForCausalLM"]}
    return [vllm.plan_setup(session, "m", config, frozenset(config["architectures"]), has_tokenizer=True).keywords]


@pytest.mark.parametrize(("engine", "own"), [("vllm", vllm.OWN_OPTIONS), ("sglang", sglang.OWN_OPTIONS)])
def test_every_option_of_ours_has_a_row(engine: str, own: tuple[str, ...]) -> None:
    assert [name for name in own if name not in read_rows(engine)] == []
    assert {name for name in read_rows(engine) if name.startswith("specrunner_")} <= set(own)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_every_default_has_a_row_with_its_value(engine: str) -> None:
    rows = read_rows(engine)
    for keywords in list_defaults(engine):
        assert {"enforce_eager", "disable_radix_cache"} & set(keywords)
        for name in set(keywords) - OF_THE_CASE - OUR_OWN:
            stated = read_value(rows[name][0])
            assert stated in (None, keywords[name]) or name in ("skip_tokenizer_init", "max_num_batched_tokens"), name


def test_the_page_has_no_default_that_is_none() -> None:
    for engine, own in (("vllm", vllm.OWN_OPTIONS), ("sglang", sglang.OWN_OPTIONS)):
        known = {name for keywords in list_defaults(engine) for name in keywords}
        assert set(read_rows(engine)) - set(own) - known == set()


def test_lengths_in_words_are_those_of_the_code() -> None:
    assert f"at most {vllm.DEFAULT_MODEL_LENGTH}" in read_rows("vllm")["max_model_len"][0]
    assert vllm.KV_CACHE_BYTES == 1 << 30 and "1 GiB" in read_rows("vllm")["kv_cache_memory_bytes"][0]
    for engine in (vllm, sglang):
        row = read_rows(engine.__name__.split(".")[-2])["specrunner_block_length"]
        assert row[1].endswith(f"else {engine.DEFAULT_BLOCK_LENGTH}")


def test_the_modes_are_those_of_the_code() -> None:
    assert read_rows("sglang")["specrunner_mode"][0] == ", ".join(f"`{mode}`" for mode in sglang.MODES)
    assert read_rows("oracle")["attention"][0] == ", ".join(f"`{geometry}`" for geometry in GEOMETRIES)
    assert set(read_rows("hf")) == {"specrunner_code", "num_threads"}
