"""Readers of events: what a run shows and writes."""

from specrunner.reporters.base import Reporter
from specrunner.reporters.factory import create_reporters

__all__ = ["Reporter", "create_reporters"]
