"""Name maps: which module of an engine computes which tensor, one YAML an architecture."""
