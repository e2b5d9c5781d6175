"""Whether a golden still speaks of what a case runs: the same request, of the same checkpoint."""

from __future__ import annotations

from pathlib import Path

from specrunner.engines.checkpoint_digest import describe_checkpoint
from specrunner.golden.manifest import Manifest, digest_case
from specrunner.sessions.sizes import find_checkpoint, measure_weights
from specrunner.spec.model import Case, Model


def find_stale(manifest: Manifest, case: Case, model_digest: str) -> str:
    """Return why a golden does not speak of what a case runs, or "".

    Args:
        manifest: of the golden.
        case: which names it.
        model_digest: of the checkpoint that the case runs; "" where it is not known, so that it says nothing.
    """
    if manifest.spec_digest != digest_case(case):
        return "the golden was made from another prompt, decoding, dtype, engine or model revision than the spec states"
    stated = manifest.model_digest
    if model_digest and stated and model_digest != stated:
        return f"the golden was made with another checkpoint: digest {stated}, and this one is {model_digest}"
    return ""


def digest_model(model: Model) -> str:
    """Return the `model_digest` that an engine would state of a checkpoint, or "" where it is not on this machine.

    Nothing is fetched, built or loaded; see `checkpoint_digest.describe_checkpoint` for what is read.
    """
    folder = find_checkpoint(model)
    if folder is None or not _is_whole(folder):
        return ""
    try:
        return str(describe_checkpoint(folder)["model_digest"])
    except OSError:
        return ""


def _is_whole(folder: Path) -> bool:
    """Tell whether configuration and weights are there: the hub's cache may hold some files of a model alone."""
    return (folder / "config.json").is_file() and measure_weights(folder) > 0
