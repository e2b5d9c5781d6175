"""The spec language: from YAML text to cases."""
