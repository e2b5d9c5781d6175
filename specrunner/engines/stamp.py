"""A stamp of everything on disk that an engine's answers come from, to tell whether they could still be the same."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from specrunner.config import find_name_maps

if TYPE_CHECKING:
    from specrunner.engines.base import Engine

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


def stamp_sources(engine: Engine) -> str:
    """Stamp an engine in the process that has loaded it.

    Returns:
        SHA-256 over names, sizes and times of change of every file of its packages, of specrunner, of the checkpoint's
        directory and of the project's own name maps, and over the processor's name and abilities. Code that is edited
        in place has another stamp, also where its version stays.
    """
    names = {*COMMON, type(engine).__module__.partition(".")[0], *type(engine).capabilities().packages}
    digest = hashlib.sha256()
    for name in sorted(names):
        for place in find_places(name):
            stamp_folder(digest, name, place)
    if Path(engine.model_path).is_dir():
        stamp_folder(digest, "checkpoint", Path(engine.model_path))
    name_maps = find_name_maps(os.environ, Path.cwd())
    if name_maps is not None:
        stamp_folder(digest, "name maps", name_maps)
    for line in describe_processor():
        digest.update(line.encode())
    return digest.hexdigest()


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


def stamp_folder(digest: hashlib._Hash, name: str, place: Path) -> None:
    """Add all files below a place to a digest, byte code left out."""
    entries: list[tuple[str, Path]] = []
    if place.is_file():
        entries.append((place.name, place))
    for folder, below, files in os.walk(place):
        below[:] = [entry for entry in below if entry != "__pycache__"]
        entries += [(os.path.relpath(Path(folder, file), place), Path(folder, file)) for file in files]
    digest.update(f"{name}\0{len(entries)}\0".encode())
    for relative, path in sorted(entries):
        try:
            state = path.stat()
        except OSError:  # a link to nowhere
            continue
        digest.update(f"{relative}\0{state.st_size}\0{state.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))


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
