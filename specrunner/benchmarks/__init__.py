"""Benchmarks: lm-eval's tasks, asked of a live session, with every sample kept."""
