"""Import the installed torchvision, also when it is a CUDA build beside a CPU build of torch.

Such a torchvision cannot load its compiled operators, and then fails where it describes `nms` and `qnms`. They are
then declared (with no kernel: a call raises), and the import is tried again.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import torch


def find_installed() -> ModuleSpec:
    """Find the torchvision that this folder hides."""
    hidden_by = Path(__file__).resolve().parents[1]
    spec = PathFinder.find_spec("torchvision", [entry for entry in sys.path if Path(entry).resolve() != hidden_by])
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
    return spec


def forget_submodules() -> None:
    """Drop what a failed import left behind."""
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        del sys.modules[name]


_spec = find_installed()
_code = _spec.loader.get_code("torchvision")  # type: ignore[union-attr]
__path__ = list(_spec.submodule_search_locations or ())
__file__ = str(_spec.origin)
try:
    exec(_code, globals())
except RuntimeError as error:
    if "torchvision::nms does not exist" not in str(error):
        raise
    forget_submodules()
    _declared = torch.library.Library("torchvision", "DEF")
    for _operator in ("nms", "qnms"):
        _declared.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    exec(_code, globals())
