"""vLLM by hand: load, one request a prompt, every layer's output and all logits held until the next one."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from common import read_arguments, tell_times

sys.path.remove(str(Path(__file__).parent))  # or this file would be what `import vllm` finds


def main() -> None:
    path, prompts = read_arguments()
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(
        path,
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        max_num_batched_tokens=4096,
        max_num_seqs=1,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        async_scheduling=False,
        kv_cache_memory_bytes=1 << 30,
        seed=0,
        disable_log_stats=True,
    )
    model = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.get_model()
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(_module, _inputs, output):  # type: ignore[no-untyped-def]
            kept[name] = output[0] + output[1] if name != "norm" else output[0].clone()

        return hook

    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(f"layers.{index}"))
    model.model.norm.register_forward_hook(keep("norm"))
    once = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
    loaded, rows = time.perf_counter(), 0
    for prompt in prompts:
        llm.generate([prompt], once, use_tqdm=False)
        with torch.inference_mode():
            kept["logits"] = model.compute_logits(kept["norm"])
        rows += kept["logits"].shape[0]
    tell_times(loaded, rows)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
