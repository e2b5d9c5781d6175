"""SGLang by hand: its ModelRunner, one request a prompt, all layers' outputs and logits held until the next."""

from __future__ import annotations

import sys
import time
from array import array
from pathlib import Path

from common import read_arguments, tell_times

sys.path.remove(str(Path(__file__).parent))  # or this file would be what `import sglang` finds


def load_runner(path: str):  # type: ignore[no-untyped-def]
    """Load a ModelRunner as SGLang's own `benchmark.one_batch` does."""
    from sglang.benchmark import one_batch
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import bootstrap
    from sglang.srt.entrypoints.engine import _set_envs_and_config
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.runtime_context import SpawnRanks, get_device, publish, spawn_world_rank
    from sglang.srt.server_args import PortArgs, ServerArgs

    arguments = ServerArgs(
        model_path=path,
        dtype="float32",
        device="cpu",
        random_seed=0,
        skip_tokenizer_init=True,
        skip_server_warmup=True,
        sampling_backend="pytorch",
        grammar_backend="none",
        attention_backend="torch_native",
        disable_cuda_graph=True,
        disable_radix_cache=True,
        disable_overlap_schedule=True,
        max_total_tokens=2048,
    )
    arguments.resolve_once()
    _set_envs_and_config(arguments)
    arguments.check_server_args()
    ports = PortArgs.init_new(arguments)
    rank = spawn_world_rank(arguments, tp_rank=0, pp_rank=0)
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=rank, gpu_id=0))
    one_batch._init_process_global_configs()
    config = ModelConfig.from_server_args(arguments)
    bootstrap.init_parallel_runtime(server_args=arguments, device=get_device().device, dist_port=ports.nccl_port)
    bootstrap.init_layer_runtime(model_config=config)
    fraction = resolving_view(arguments).mem_fraction_static
    runner = ModelRunner(
        model_config=config, mem_fraction_static=fraction, gpu_id=0, nccl_port=ports.nccl_port, server_args=arguments
    )
    runner.alloc_memory_pool()
    runner.init_attention_backends()
    runner.init_cuda_graphs()
    return runner


def main() -> None:
    path, prompts = read_arguments()
    import torch
    from sglang.benchmark import one_batch
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    runner = load_runner(path)
    tokenizer = get_tokenizer(path)
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(_module, _inputs, output):  # type: ignore[no-untyped-def]
            kept[name] = output[0] + output[1]

        return hook

    model = runner.model
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(f"layers.{index}"))
    get_logits = model.logits_processor._get_logits

    def keep_logits(*arguments, **keywords):  # type: ignore[no-untyped-def]
        logits = get_logits(*arguments, **keywords)
        kept["logits"] = logits.detach().clone()
        return logits

    model.logits_processor._get_logits = keep_logits
    loaded, rows = time.perf_counter(), 0
    for number, prompt in enumerate(prompts):
        ids = array("q", tokenizer(prompt).input_ids)
        request = Req(
            rid=str(number),
            origin_input_text="",
            origin_input_ids=ids,
            sampling_params=SamplingParams(temperature=0, max_new_tokens=1),
            return_logprob=True,
        )
        request.full_untruncated_fill_ids = ids
        request.extend_end = len(ids)
        request.logprob_start_len = 0
        with torch.inference_mode():
            one_batch.extend([request], runner)
        runner.req_to_token_pool.clear()
        runner.token_to_kv_pool_allocator.clear()
        rows += kept["logits"].shape[0]
    tell_times(loaded, rows)


if __name__ == "__main__":
    main()
