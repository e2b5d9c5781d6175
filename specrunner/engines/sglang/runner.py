"""SGLang in one process: its ModelRunner, fed request by request, without scheduler or other processes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specrunner.engines.sglang.notes import Note, Order
from specrunner.engines.sglang.plugin import Observer, describe_model, install_hooks
from specrunner.engines.sglang.room import check_room


class Runner:
    """A loaded ModelRunner.

    Args:
        keywords: arguments of SGLang's `ServerArgs`.

    Attributes:
        described: what was loaded, see `describe_model`.
    """

    def __init__(self, keywords: Mapping[str, Any]) -> None:
        from sglang.benchmark import one_batch
        from sglang.srt.configs.model_config import ModelConfig
        from sglang.srt.distributed import bootstrap
        from sglang.srt.entrypoints.engine import _set_envs_and_config
        from sglang.srt.model_executor.model_runner import ModelRunner
        from sglang.srt.plugins import load_plugins
        from sglang.srt.plugins.hook_registry import HookRegistry
        from sglang.srt.runtime_context import SpawnRanks, get_device, publish, spawn_world_rank
        from sglang.srt.server_args import PortArgs, ServerArgs

        self._order: Order | None = None
        self._notes: list[Note] = []
        load_plugins()
        install_hooks(Observer(lambda: self._order, self._notes.append), mask_id=None, diffusion=False)
        HookRegistry.apply_hooks()
        arguments = ServerArgs(**keywords)
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
        self._runner = ModelRunner(
            model_config=config,
            mem_fraction_static=get_memory_fraction(arguments),
            gpu_id=0,
            nccl_port=ports.nccl_port,
            server_args=arguments,
        )
        self._runner.alloc_memory_pool()
        self._runner.init_attention_backends()
        self._runner.init_cuda_graphs()
        self.described = describe_model(self._runner)

    def run(
        self,
        ids: list[int],
        order: Order,
        max_new_tokens: int,
        ignore_eos: bool,
        has_stopped: Callable[[Sequence[int]], bool] = lambda ids: False,
        companions: Sequence[list[int]] = (),
    ) -> tuple[list[int], dict[str, Any], list[list[Note]]]:
        """Run a prompt and generate greedily.

        Args:
            ids: the prompt.
            order: what to note.
            max_new_tokens: tokens to generate, at least 1 (the prompt's forward gives one).
            ignore_eos: go on after an end of sequence.
            has_stopped: whether no token is wanted behind those generated so far.
            companions: prompts of the same batch, which generate as many tokens.

        Returns:
            The generated ids, facts, and the notes (of the only rank).

        Raises:
            ModelUnsupported: more tokens than the key-value cache or the model's context holds.
        """
        import torch
        from sglang.benchmark import one_batch
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        lengths = [len(prompt) for prompt in (ids, *companions)]
        needed = sum(lengths) + len(lengths) * max_new_tokens
        check_room(self.described, sum(lengths), max_new_tokens, max(lengths) + max_new_tokens, needed)
        requests = []
        for number, prompt in enumerate((ids, *companions)):
            request = Req(
                rid=order.request_ids(number),
                origin_input_text="",
                origin_input_ids=array("q", prompt),
                sampling_params=SamplingParams(temperature=0, max_new_tokens=max_new_tokens),
                return_logprob=order.wants_logits,
            )
            request.full_untruncated_fill_ids = request.origin_input_ids
            request.extend_end = len(prompt)
            request.logprob_start_len = 0 if request.return_logprob else -1
            requests.append(request)
        self._notes.clear()  # a request that failed may have left some
        self._order = order
        try:
            with torch.inference_mode():
                next_ids, _, batch = one_batch.extend(requests, self._runner)
                self._order = None
                output = [int(next_ids[0])]
                stops = set() if ignore_eos else set(self.described["eos_token_ids"])
                while len(output) < max_new_tokens and output[-1] not in stops and not has_stopped(output):
                    next_ids, _ = one_batch.decode(next_ids, batch, self._runner)
                    output.append(int(next_ids[0]))
        finally:
            self._order = None
            self._runner.req_to_token_pool.clear()
            self._runner.token_to_kv_pool_allocator.clear()
        notes, self._notes[:] = list(self._notes), []
        return output, {"finish_reason": "stop" if output[-1] in stops else "length"}, [notes]

    def close(self) -> None:
        """Let go of the model."""
        self._runner = None


def get_memory_fraction(arguments: Any) -> float:
    """Return the share of the device's memory that SGLang's own defaults give to weights and cache."""
    from sglang.srt.arg_groups.overrides import resolving_view

    fraction: float = resolving_view(arguments).mem_fraction_static
    return fraction
