"""Which files of a checkpoint's folder are its weights, and which its tokenizer."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
"""Extensions of files with weights."""

TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that decide how a prompt becomes token ids."""

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tekken.json", "tokenizer_config.json", "vocab.json")
"""Those of them of which one is enough for a tokenizer."""


def list_weights(folder: Path) -> list[Path]:
    """Return the files with weights, in the order of their names."""
    return sorted(entry for entry in folder.iterdir() if entry.suffix in WEIGHTS and entry.is_file())


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a checkpoint has a tokenizer of its own."""
    return any((folder / name).is_file() for name in VOCABULARIES)
