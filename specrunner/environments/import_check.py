"""Import modules and write down what happened; run by path under an engine's interpreter, so standard library only.

`python import_check.py RESULT MODULE...` writes to RESULT a JSON object: `python` (version), `modules` (a list of
{name, seconds, error, kind}), and `torch` ({version, cuda, available, devices, problem}) when torch is among them.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from importlib import import_module
from pathlib import Path


def check_import(name: str) -> dict[str, object]:
    """Import one module; an error is a result."""
    started = time.monotonic()
    error = kind = ""
    try:
        import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as raised:  # noqa: BLE001 - engines call sys.exit() while they are imported
        kind = type(raised).__name__
        error = f"{kind}: {raised}".strip()
    return {"name": name, "seconds": round(time.monotonic() - started, 2), "error": error, "kind": kind}


def describe_torch() -> dict[str, object]:
    """Say which build of torch this is, and whether it reaches a GPU."""
    import torch

    problem, available, devices = "", False, []
    if torch.version.cuda is not None:
        try:
            torch.cuda.init()
            available = torch.cuda.is_available()
            devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        except Exception as raised:  # noqa: BLE001
            problem = f"{type(raised).__name__}: {raised}"
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "available": available,
        "devices": devices,
        "problem": problem,
    }


def main(arguments: list[str]) -> int:
    """Check the modules named on the command line, in order."""
    result, *names = arguments
    modules = [check_import(name) for name in names]
    report: dict[str, object] = {"python": platform.python_version(), "modules": modules}
    if any(module["name"] == "torch" and not module["error"] for module in modules):
        report["torch"] = describe_torch()
    Path(result).write_text(json.dumps(report), encoding="utf-8")
    return int(any(module["error"] for module in modules))


if __name__ == "__main__":
    # The folder of this file holds specrunner's own modules, which must not hide the environment's.
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    sys.exit(main(sys.argv[1:]))
