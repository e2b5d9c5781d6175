"""Readers of events: what a run shows and writes."""
