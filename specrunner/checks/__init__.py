"""The comparisons: pure numerics, no I/O."""
