"""What `import specrunner` names: pinned, light to import, documented, and its examples run."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import specrunner
from specrunner import errors

ROOT = Path(specrunner.__file__).parents[1]
PINNED = Path(__file__).with_name("python_api.txt")
TOOL = runpy.run_path(str(ROOT / "tools" / "describe_api.py"))
PAGE = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n((?:import|loaded|run|differences) .*?)```", PAGE, flags=re.DOTALL)


def test_names_and_signatures_are_those_that_were_promised() -> None:
    found = "".join(f"{line}\n" for line in TOOL["list_signatures"]())
    if os.environ.get("SPECRUNNER_UPDATE_EXPECTED"):
        PINNED.write_text(found, encoding="utf-8")
    assert found == PINNED.read_text(encoding="utf-8"), "if it is meant: SPECRUNNER_UPDATE_EXPECTED=1 writes it anew"


def test_every_name_is_in_one_group_of_the_page() -> None:
    grouped = [name for names in TOOL["GROUPS"].values() for name in names]
    assert sorted(["__version__", *grouped]) == sorted(specrunner.__all__)
    assert set(specrunner.__all__) <= set(dir(specrunner))


def test_the_page_is_made_from_the_docstrings() -> None:
    assert TOOL["render"]() == PAGE, "run python tools/generate_docs.py"
    assert all(inspect.getdoc(getattr(specrunner, name)) for name in specrunner.__all__)


def test_a_name_that_is_none_says_so() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        specrunner.no_such_name  # noqa: B018


def test_the_import_is_light() -> None:
    code = (
        "import sys; before = set(sys.modules); import specrunner; specrunner.__version__; dir(specrunner);"
        "news = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(news - set(sys.stdlib_module_names)), [name for name in sys.modules if 'specrunner.' in name]);"
        "specrunner.load_specs, specrunner.make_plan, specrunner.Engine, specrunner.compare, specrunner.read_run;"
        "print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    alone, heavy = done.stdout.splitlines()
    assert alone == "['specrunner'] []"
    assert heavy == "[]"


def test_the_examples_load_plan_and_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import save_file

    planning, _running, comparing = EXAMPLES
    names = {"specrunner": specrunner}
    monkeypatch.chdir(ROOT)
    exec(planning, names)
    assert re.fullmatch(r"\d+ cases in \d+ sessions\n", capsys.readouterr().out)
    monkeypatch.chdir(tmp_path)
    save_file({"logits": torch.ones(2, 4)}, "old.safetensors")
    save_file({"logits": torch.full((2, 4), 1.5)}, "new.safetensors")
    exec(comparing, names)
    assert capsys.readouterr().out.startswith("False logits ")


def test_errors_are_one_tree_and_drawn() -> None:
    tree = (errors.__doc__ or "").split("\n\n")[1]
    drawn = {(name, len(indent) // 4) for indent, name in re.findall(r"^((?:[ │├└─]{4})+)(\w+) ", tree, re.MULTILINE)}
    found = {
        (error.__name__, error.__mro__.index(errors.SpecrunnerError) + 1)
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, Exception)
    }
    assert drawn == found
    assert all(
        kind == error.kind and issubclass(error, errors.EngineError) for kind, error in errors.ENGINE_ERRORS.items()
    )
