"""Goldens: kept captures with their provenance, changed only on request (DESIGN section 7)."""
