"""Stand-in for SGLang's compiled kernels on a CPU, where no build of them is installed.

SGLang imports names from this module at import time and calls none of them on a CPU without AMX: it then computes with
its own PyTorch code. A call is a mistake, and says so.
"""

from __future__ import annotations

from typing import Any, NoReturn


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*_arguments: Any, **_keywords: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} was called, and no sgl_kernel is installed on this CPU")

    kernel.__name__ = name
    return kernel
