"""Models of the hub: the first load sees what every later one sees, and without a network what is cached is all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from specrunner.engines.checkpoint_digest import describe_checkpoint
from specrunner.engines.snapshots import choose_files
from specrunner.spec.model import Model
from tests.engines.fake_hub import COMMIT, serve_hub

NAME = "owner/tiny"
Ensure = Callable[[Model], str]

LOAD = """
import json, sys
from pathlib import Path
from specrunner.engines.hf import HfEngine
from specrunner.engines.trust import check_trust
from specrunner.requests import Request, Session
from specrunner.spec.model import Decode, Model, Prompt

session = Session("hf", "", Model(id=sys.argv[1]), "float32", "cpu", json.loads(sys.argv[3]))
check_trust(session, sys.argv[1], HfEngine.capabilities())
engine = HfEngine(session, sys.argv[1], Path(sys.argv[2]))
facts = engine.load()
capture = engine.capture(Request(Prompt(text="Alice was"), (), Decode(2)))
names = "model_digest", "tokenizer_digest", "weights_digested", "weights_bytes", "revision"
print(json.dumps({name: facts[name] for name in names} | {"output": capture.output_token_ids}))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, ensure: Ensure) -> Path:
    """The files of a model whose weights lie in two shards, with files beside them that no engine reads."""
    folder = Path(shutil.copytree(ensure(Model(recipe="glass-0.8m")), tmp_path_factory.mktemp("hub") / "tiny"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("pytorch_model.bin", "model.Q4.gguf", "picture.png", "onnx/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not read")
    return folder


def load(home: Path, endpoint: str, options: dict[str, Any] | None = None, **environment: str) -> dict[str, Any]:
    """Load the model in a process of its own and answer a text prompt."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    variables |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", **environment}
    command = [sys.executable, "-c", LOAD, NAME, str(home), json.dumps(options or {})]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_the_first_load_sees_what_every_later_one_sees(repository: Path, tmp_path: Path) -> None:
    """The hub gives its files to who has the token; they are kept where the options say."""
    home, cache = tmp_path / "home", tmp_path / "elsewhere"
    options = {"cache_dir": str(cache), "token": "secret"}
    with serve_hub(NAME, repository, token="secret") as (endpoint, fetched):
        first = load(home, endpoint, options)
    assert not {"pytorch_model.bin", "model.Q4.gguf", "picture.png", "onnx/model.safetensors"} & set(fetched)
    assert len(fetched) == len(set(fetched)) > 5
    assert not (home / "hub" / "models--owner--tiny").exists()
    snapshot = cache / "models--owner--tiny" / "snapshots" / COMMIT
    described = describe_checkpoint(snapshot)
    assert {name: first[name] for name in described} == described
    assert first["weights_bytes"] == sum(file.stat().st_size for file in repository.glob("*.safetensors")) > 0
    assert first["tokenizer_digest"] is not None and first["revision"] == COMMIT and len(first["output"]) == 2
    assert load(home, endpoint, options, HF_HUB_OFFLINE="1") == first  # from the cache, the hub being gone


SAFE = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("names", "model", "options", "chosen"),
    [
        ([*SAFE, "pytorch_model.bin", "original/w.safetensors"], {}, {}, SAFE),
        ([*SAFE, "pytorch_model.bin"], {"allow_pickle": True}, {}, SAFE),
        (["pytorch_model.bin", "w.pt"], {"allow_pickle": True}, {}, ["pytorch_model.bin", "w.pt"]),
        (["pytorch_model.bin"], {}, {}, []),
        ([*SAFE, "w.bin"], {"allow_pickle": True}, {"use_safetensors": False}, [*SAFE, "w.bin"]),
        ([*SAFE, "w.bin"], {}, {"use_safetensors": False}, SAFE),
        (["a.gguf", "b.gguf", "config.json"], {}, {"gguf_file": "b.gguf"}, ["b.gguf", "config.json"]),
        (SAFE, {}, {"load_format": "dummy"}, ["config.json", "tokenizer.json"]),
        (["chat_template.jinja", "m.py", "merges.txt", "x.tiktoken", "y.model", "z.h5"], {}, {}, None),
    ],
)
def test_which_files_are_fetched(
    names: list[str], model: dict[str, bool], options: dict[str, Any], chosen: list[str] | None
) -> None:
    expected = names[:-1] if chosen is None else chosen
    assert choose_files(names, Model(id=NAME, **model), options) == sorted(expected)  # type: ignore[arg-type]
