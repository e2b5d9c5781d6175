"""The engine `hf`: Hugging Face Transformers, read through forward hooks."""

from specrunner.engines.hf.adapter import HfEngine

__all__ = ["HfEngine"]
