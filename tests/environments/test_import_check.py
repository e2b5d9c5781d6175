"""What runs under an engine's interpreter to see whether its modules import; here under our own."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest

from specrunner.environments.import_check import check_import, describe_torch, main


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules that import, fail, leave the interpreter and are interrupted."""
    texts = {
        "fine": "",
        "broken": "1 / 0",
        "leaving": "raise SystemExit('no GPU')",
        "interrupted": "raise KeyboardInterrupt",
    }
    for name, text in texts.items():
        (tmp_path / f"checked_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in texts:
        monkeypatch.delitem(sys.modules, f"checked_{name}", raising=False)
    return tmp_path


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [
        ("checked_fine", "", ""),
        ("checked_broken", "ZeroDivisionError", "ZeroDivisionError: division by zero"),
        ("checked_leaving", "SystemExit", "SystemExit: no GPU"),
        ("checked_absent", "ModuleNotFoundError", "ModuleNotFoundError: No module named 'checked_absent'"),
    ],
)
def test_an_error_is_a_result(name: str, kind: str, error: str) -> None:
    found = check_import(name)
    assert (found["name"], found["kind"], found["error"]) == (name, kind, error)
    assert isinstance(found["seconds"], float)


@pytest.mark.usefixtures("modules")
def test_an_interrupt_is_none() -> None:
    with pytest.raises(KeyboardInterrupt):
        check_import("checked_interrupted")


def test_what_was_found_is_written_down(modules: Path) -> None:
    result = modules / "result.json"
    assert main([str(result), "checked_fine"]) == 0
    report = json.loads(result.read_text())
    assert report.keys() == {"python", "modules"}
    assert report["python"] == platform.python_version()
    assert main([str(result), "checked_fine", "checked_broken"]) == 1
    assert [one["kind"] for one in json.loads(result.read_text())["modules"]] == ["", "ZeroDivisionError"]


def test_torch_says_what_it_reaches(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert main([str(modules / "result.json"), "torch"]) == 0
    assert json.loads((modules / "result.json").read_text())["torch"] == describe_torch()
    monkeypatch.setattr(torch.version, "cuda", None)
    expected = {"version": torch.__version__, "cuda": None, "available": False, "devices": [], "problem": ""}
    assert describe_torch() == expected

    def refuse() -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", refuse)
    assert describe_torch() == expected | {"cuda": "13.0", "problem": "RuntimeError: no driver"}
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", "GPU {}".format)
    assert describe_torch() == expected | {"cuda": "13.0", "available": True, "devices": ["GPU 0", "GPU 1"]}
