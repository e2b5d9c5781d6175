"""Showing that specs can fail: faults and legitimate variants, planted one after the other in the engine under test."""
