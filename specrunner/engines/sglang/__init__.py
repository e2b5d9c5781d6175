"""The engine `sglang`: SGLang's model runner or its server, read through hooks in its model."""

from specrunner.engines.sglang.adapter import SglangEngine

__all__ = ["SglangEngine"]
