"""Loading a checkpoint with Transformers: every way in which it fails becomes one clear error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.engines.checkpoint_files import has_tokenizer
from specrunner.engines.memory import is_out_of_memory
from specrunner.engines.snapshots import fetch_files
from specrunner.engines.trust import read_hub_options, refuse_code
from specrunner.errors import CapabilityMissing, EngineError, EngineOutOfMemory, ModelUnavailable, ModelUnsupported
from specrunner.spec.model import Model

if TYPE_CHECKING:
    import torch

OWN_CODE: Mapping[str, tuple[str, str, str]] = {
    "LLaDA2MoeModelLM": (
        "tiny_llada2",
        "configuration_llada2_moe.LLaDA2MoeConfig",
        "modeling_llada2_moe.LLaDA2MoeModelLM",
    )
}
"""By architecture: the folder under `specrunner/models` with modeling files of ours, configuration and model class."""

MODEL_OPTIONS: Mapping[str, str] = {
    "pretrained_model_name_or_path": "id",
    "config": "path",
    "subfolder": "path",
    "adapter_kwargs": "path",
}
"""Options that say what a spec's `model` says, and its field (see `Capabilities`)."""

CASE_OPTIONS: Mapping[str, str] = {"dtype": "dtype", "torch_dtype": "dtype"}
"""Options that say what a case says, and its field."""

CODE_OPTIONS = ("attn_implementation", "experts_implementation", "use_kernels", "kernel_config", "allow_all_kernels")
"""Options under which Transformers runs kernels from a hub: `owner/name`, or true for those that it chooses."""


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn what Transformers and torch raise into an EngineError.

    Args:
        what: what was tried, e.g. `load glass-0.8m`.

    Raises:
        EngineError: a subclass that fits, its message the first line of the cause.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise explain_error(what, error) from error


def explain_error(what: str, error: Exception) -> EngineError:
    """Choose the EngineError for an exception of Transformers, safetensors or torch."""
    text = str(error)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    cause = f"{type(error).__name__}: {line}"
    if isinstance(error, MemoryError) or is_out_of_memory(type(error).__name__, text):
        return EngineOutOfMemory(f"out of memory while trying to {what}: {line}")
    if "trust_remote_code" in text:
        return refuse_code()
    if "does not recognize this architecture" in text or "Unrecognized" in text:
        return ModelUnsupported(f"this version of Transformers does not know the architecture: {line}")
    if type(error).__name__ == "SafetensorError":
        return ModelUnavailable(f"the weights cannot be read: {line}")
    if isinstance(error, OSError):
        return ModelUnavailable(f"could not {what}: {line}")
    if isinstance(error, TypeError | ValueError | ImportError | AttributeError | KeyError):
        return ModelUnsupported(f"could not {what}: {cause}")
    return EngineError(f"could not {what}: {cause}")


def resolve_folder(model: Model, path: str, options: Mapping[str, Any]) -> Path:
    """Return the directory that holds the checkpoint, for a hub id after its files are in the hub's cache.

    Args:
        model: what the spec says of it.
        path: directory or hub id.
        options: the engine's; they may name another cache, or a token.

    Raises:
        ModelUnavailable: no such directory, or no `config.json` in it, or a download that failed.
    """
    if model.id is not None and path == model.id:
        from transformers import utils

        find: Any = utils.cached_file  # type: ignore[attr-defined]
        try:
            with translate_errors(f"find {path} on the hub"):
                access, kept = read_hub_options(options)
                folder = Path(str(find(path, "config.json", revision=model.revision, **access, **kept))).parent
                fetch_files(model, folder, options)
                return folder
        except ModelUnavailable as error:
            error.help = error.help or "check the name; without a network, download it first, or state its `path`"
            raise
    folder = Path(path)
    if not folder.is_dir():
        raise ModelUnavailable(f"no directory {path}", help="a relative `path` starts at the folder of the spec")
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(f"no config.json in {path}", help="name a directory in the Transformers layout")
    return folder


def choose_device(device: str) -> torch.device:
    """Resolve `auto` to CUDA where there is one.

    Raises:
        CapabilityMissing: `cuda` without a device.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return torch.device(device)


def check_device(device: str) -> None:
    """Make sure that the device is there.

    Raises:
        CapabilityMissing: `cuda` without a device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise CapabilityMissing("torch sees no CUDA device")


def load_model(
    model: Model, path: str, folder: Path, dtype: torch.dtype, device: torch.device, options: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """Load a causal language model in evaluation mode.

    Args:
        model: what the spec says of it.
        path: directory or hub id.
        folder: the directory that holds the checkpoint.
        dtype: of the parameters; buffers keep the dtype that the model gives them.
        device: where it goes, unless `options` has a `device_map`.
        options: keywords of `from_pretrained`. `specrunner_code: own` takes modeling files of ours (`OWN_CODE`), not
            those that the checkpoint carries; keys that its `config.json` lacks are then further keywords.

    Returns:
        The model, and the names of weights in the checkpoint that the model does not use.

    Raises:
        ModelUnavailable: no files, broken files, or weights that the checkpoint lacks.
        ModelUnsupported: an architecture, attention implementation or option that Transformers refuses.
        EngineOutOfMemory: no room.
    """
    options = dict(options)
    code = options.pop("specrunner_code", "checkpoint")
    if code not in ("checkpoint", "own"):
        raise ModelUnsupported(f"specrunner_code is {code!r}", help="it can be checkpoint or own")
    with translate_errors(f"load {model.label}"):
        load: Any = find_auto_class(folder).from_pretrained
        if code == "own":
            model_class, config = find_own_code(folder, options)
            load, options["config"] = model_class.from_pretrained, config
        with heed_wide_buffers():
            loaded, report = load(
                path,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                dtype=dtype,
                output_loading_info=True,
                **options,
            )
        # Transformers fills such weights with random numbers and goes on.
        absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
        if absent:
            raise ModelUnavailable(f"the checkpoint lacks {len(absent)} weights of the model, the first is {absent[0]}")
        if "device_map" not in options:
            loaded = loaded.to(device)
        return loaded.eval(), sorted(report["unexpected_keys"])


@contextmanager
def heed_wide_buffers() -> Iterator[None]:
    """Have Transformers 4 load a model that names buffers which must stay in float32.

    Its loader heeds such names (`_keep_in_fp32_modules_strict`), but its `post_init` refuses those of no parameter, as
    LLaDA2's `expert_bias`. Transformers 5 does neither need nor get this.
    """
    import transformers

    if int(transformers.__version__.split(".")[0]) >= 5:
        yield
        return
    base: Any = transformers.PreTrainedModel
    original = base.post_init

    def post_init(self: Any) -> None:
        names, self._keep_in_fp32_modules_strict = self._keep_in_fp32_modules_strict, None
        original(self)
        self._keep_in_fp32_modules_strict = names

    base.post_init = post_init
    try:
        yield
    finally:
        base.post_init = original


def find_auto_class(folder: Path) -> Any:
    """Return the class of Transformers that knows the architecture: that of causal models, else of multimodal ones."""
    import transformers

    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Transformers 4 has no such mapping.
    known: Any = getattr(transformers.models.auto.modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", ())
    causal: Any = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    kind = stated.get("model_type")
    is_multimodal = kind in known and kind not in causal
    return transformers.AutoModelForMultimodalLM if is_multimodal else transformers.AutoModelForCausalLM


def find_own_code(folder: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the model class of ours for a checkpoint, and its configuration.

    Args:
        folder: the directory that holds the checkpoint.
        options: keywords; those that are keys of the configuration are taken out and lie over `config.json`.

    Raises:
        ModelUnsupported: we have no modeling files for the architecture.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    import specrunner.models

    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = next(iter(stated.get("architectures") or ()), "?")
    if architecture not in OWN_CODE:
        raise ModelUnsupported(f"specrunner has no code of its own for {architecture}")
    place, config_class, model_class = OWN_CODE[architecture]
    source = str(Path(specrunner.models.__file__).parent / place)
    own_config: Any = get_class_from_dynamic_module(config_class, source)
    known = vars(own_config())
    changes = {name: options.pop(name) for name in list(options) if name in known}
    kept = {name: value for name, value in stated.items() if name != "auto_map"}
    return get_class_from_dynamic_module(model_class, source), own_config(**kept | changes)


def load_tokenizer(model: Model, path: str, folder: Path, options: Mapping[str, Any], config: Any = None) -> Any:
    """Load the checkpoint's tokenizer, or return None where it has none.

    Args:
        model: what the spec says of it.
        path: directory or hub id.
        folder: the directory that holds the checkpoint.
        options: the engine's; they may name another cache, or a token.
        config: the model's configuration, where it is not the one that the checkpoint's own code makes.
    """
    if not has_tokenizer(folder):
        return None
    from transformers import AutoTokenizer

    access, kept = read_hub_options(options)
    with translate_errors(f"load the tokenizer of {model.label}"):
        return AutoTokenizer.from_pretrained(
            path, revision=model.revision, trust_remote_code=model.trust_remote_code, config=config, **access, **kept
        )
