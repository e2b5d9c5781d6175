"""Architectures and checkpoints that we had to write ourselves."""
