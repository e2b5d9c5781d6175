"""Tolerances that a measurement supports: noise from legitimate variants, on the cases' prompts and on others."""
