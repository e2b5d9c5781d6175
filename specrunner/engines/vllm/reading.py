"""Prompts sent through a loaded vLLM, and the tensors that its worker extension read meanwhile."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.engines.hooks import finish_tensors, gather_ranks
from specrunner.engines.name_maps import HookPoint, NameMap
from specrunner.engines.served_routers import BIAS
from specrunner.engines.vllm.worker import take_tensors
from specrunner.errors import CaptureIncomplete

if TYPE_CHECKING:
    import torch


class PromptReader:
    """Reads tensors of one loaded model.

    Args:
        llm: vLLM's `LLM`, with our worker extension.
        name_map: of the architecture; without entries no tensor can be read.
        architecture: as the checkpoint names it.
        workspace: where the workers write the tensors.
    """

    def __init__(self, llm: Any, name_map: NameMap, architecture: str, workspace: Path) -> None:
        self._llm = llm
        self._map = name_map
        self._architecture = architecture
        self._workspace = workspace
        self._captures = 0

    def run_prompt(
        self,
        ids: Sequence[int],
        patterns: Sequence[str],
        last_rows: int | None = None,
        companions: Sequence[Sequence[int]] = (),
    ) -> tuple[dict[str, list[int]], dict[str, torch.Tensor]]:
        """Send one prompt through the engine and read its tensors.

        Args:
            ids: the prompt.
            patterns: tensor patterns.
            last_rows: logits of this many rows only; None: a row for every token is required of every tensor.
            companions: prompts of the same batch.

        Returns:
            By name of what was hooked, the rows of each forward; the tensors, [tokens, features] on the CPU. With
            `last_rows`, those of the companions stand under `companions.{i}.logits`.

        Raises:
            CaptureIncomplete: no name map, no match, a hook that did not fire, or missing rows.
        """
        from vllm import SamplingParams

        if not self._map.entries:
            raise CaptureIncomplete(f"no name map of vllm knows {self._architecture}, so no tensor can be captured")
        llm = self._llm
        self._captures += 1
        prefix = self._workspace / f"capture-{self._captures}"
        key = self._map.architectures[0]
        names = llm.collective_rpc("specrunner_begin", args=(key, list(patterns), last_rows, 1 + len(companions)))[0]
        points = [point for point in self._points if point.name in names]
        gathered = [point.name for point in points if point.entry.gather is not None]
        try:
            once = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
            prompts = [{"prompt_token_ids": list(prompt)} for prompt in (ids, *companions)]
            llm.generate(prompts, once, use_tqdm=False)
        finally:
            ends = llm.collective_rpc("specrunner_end", args=(str(prefix), gathered, os.getpid()))
            ranks = [take_tensors(f"{prefix}.{rank}") for rank in range(len(ends))]
        for end in ends:
            if end["error"] is not None:
                raise CaptureIncomplete(f"a hook failed: {end['error']}")
        if companions and not ends[0]["together"]:
            raise CaptureIncomplete("the engine answered the prompts of a batch one after the other")
        tensors = {name: ranks[0][name] for name in ranks[0] if name.startswith("companions.")}
        for point in points:
            parts = [rank[point.name] for rank in ranks if point.name in rank]
            if parts:
                tensors[point.name] = gather_ranks(parts, point.entry.gather, self._kv_replicas(point))
        rows = {name: chunks for name, chunks in ends[0]["rows"].items() if chunks}
        if last_rows is not None:
            return rows, tensors
        biases = {name: tensor for name, tensor in ranks[0].items() if name.endswith(BIAS)}
        return rows, self._finish(tensors, points, patterns, len(ids)) | biases

    def _finish(
        self, tensors: Mapping[str, torch.Tensor], points: Sequence[HookPoint], patterns: Sequence[str], tokens: int
    ) -> dict[str, torch.Tensor]:
        """Check that every tensor is there with a row for each token; say why when it is not."""
        try:
            return finish_tensors({name: [tensor] for name, tensor in tensors.items()}, points, patterns, tokens)
        except CaptureIncomplete as error:
            config = self._llm.llm_engine.vllm_config
            if "did not fire" in error.message and not config.model_config.enforce_eager:
                raise CaptureIncomplete(
                    f"{error.message}: the model is compiled, and compiled code runs no hooks",
                    help="capture only final_norm and logits, or leave enforce_eager at true",
                ) from error
            if "rows for a prompt" in error.message and config.cache_config.enable_prefix_caching:
                raise CaptureIncomplete(
                    f"{error.message}: prefix caching skipped the others", help="set enable_prefix_caching: false"
                ) from error
            raise

    @cached_property
    def _points(self) -> list[HookPoint]:
        config = self._llm.llm_engine.vllm_config.model_config.hf_text_config
        return self._map.hook_points(int(getattr(config, self._map.layers_key)))

    def _kv_replicas(self, point: HookPoint) -> int:
        """Return how many neighbouring ranks hold the same heads of this tensor."""
        if not point.name.endswith((".attention.key", ".attention.value")):
            return 1
        config = self._llm.llm_engine.vllm_config
        heads = int(config.model_config.get_total_num_kv_heads())
        return max(1, int(config.parallel_config.tensor_parallel_size) // heads)
