"""The engine `vllm`: vLLM in the worker's process, read through hooks in its model runner."""

from specrunner.engines.vllm.adapter import VllmEngine

__all__ = ["VllmEngine"]
