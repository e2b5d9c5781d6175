"""What of a machine an engine's answers may come from: packages, environment variables, the processor."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

COMMON = (
    *("specrunner", "torch", "transformers", "tokenizers", "numpy"),
    *("triton", "flashinfer", "sgl_kernel", "flash_attn", "deep_gemm"),
)
"""Packages that any engine may compute with, beside those that it names: libraries, and those that hold kernels."""

VARIABLES = (
    *(
        "VLLM_",
        "SGLANG_",
        "SGL_",
        "TORCH",
        "PYTORCH_",
        "CUDA_",
        "CUBLAS_",
        "NVIDIA_",
        "NCCL_",
        "TRITON_",
        "DG_",
        "TRANSFORMERS_",
    ),
    *("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_"),
    *("GLIBC_TUNABLES", "LD_PRELOAD", "LD_LIBRARY_PATH"),
    *("HF_", "TOKENIZERS_", "FLASHINFER_", "PYTHONHASHSEED", "LANG", "LC_ALL"),
)
"""Beginnings of the names of variables that may change what an engine computes."""

HARMLESS = (
    *("HF_TOKEN", "HF_HOME", "HF_HUB_", "HF_DATASETS_", "HF_XET_", "HF_MODULES_CACHE"),
    *("CUDA_VISIBLE_DEVICES", "OMP_WAIT_POLICY"),
)
"""Beginnings of names that are none after all.

Where files lie is told by their content, the device by itself, and how threads wait changes no number.
"""

CPU = Path("/proc/cpuinfo")


def find_places(package: str) -> list[Path]:
    """Return the folders, or the file, of a package without importing it; nothing when it is not there."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return []
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    return folders or ([Path(spec.origin)] if spec.origin else [])


def select_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may change what an engine computes."""
    return {
        name: value for name, value in variables.items() if name.startswith(VARIABLES) and not name.startswith(HARMLESS)
    }


def describe_processor() -> Iterable[str]:
    """Return the lines by which Linux names the first processor; nothing elsewhere."""
    try:
        lines = CPU.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    wanted = ("model name", "flags", "Features", "CPU part")
    return tuple(next((line for line in lines if line.startswith(name)), "") for name in wanted)
