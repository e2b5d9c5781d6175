"""The adapters over inference engines."""
