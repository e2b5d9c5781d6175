"""What a golden takes on disk: its files against the raw tensors it stands for, in compact and in full form.

    python benchmarks/golden_size.py [--tokens 4,16,64]

The tensors have the shapes of LLaDA2.0-mini in bfloat16: the output of every layer [tokens, 2048], the chosen experts
and their weights [tokens, 8], and logits over 157,184 ids. Their values are random, which changes no size. The peer is
one safetensors file with the same tensors as an engine captured them. A golden is its manifest and its tensors file, as
`run --update-goldens` writes them with the defaults of the spec; "full" keeps all tokens whole (`full_tokens`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors.torch import save_file

from specrunner.checks.evidence import LoadedCapture
from specrunner.checks.sources import MemorySource
from specrunner.golden.record import Captured, make_golden, write_new
from specrunner.spec.loader import load_specs

LAYERS, HIDDEN, EXPERTS, CHOSEN, VOCABULARY = 20, 2048, 256, 8, 157_184
SPEC = """\
version: 1
model: {{recipe: glass-0.8m}}
engines: [hf]
cases:
  - name: sized
    prompt: {{token_ids: [1]}}
    tensors: [{tensors}]
    tolerance: {{{rules}}}
    golden: {golden}
"""
RULES = {
    "layers.*.router.expert_ids": "exact",
    "layers.*.router.expert_weights": "{sqnr: 40}",
    "layers.*.output": "{sqnr: 40}",
    "logits": "{sqnr: 40}",
}
FORMS = {"compact": "true", "full": "{full_tokens: 4096}"}


def make_tensors(tokens: int) -> dict[str, torch.Tensor]:
    """Return tensors [tokens, …] by name."""
    torch.manual_seed(0)
    found = {}
    for layer in range(LAYERS):
        found[f"layers.{layer}.output"] = torch.randn(tokens, HIDDEN).bfloat16()
        found[f"layers.{layer}.router.expert_ids"] = torch.randint(EXPERTS, (tokens, CHOSEN))
        found[f"layers.{layer}.router.expert_weights"] = torch.rand(tokens, CHOSEN)
    found["logits"] = torch.randn(tokens, VOCABULARY).bfloat16()
    return found


def write_golden(folder: Path, form: str, tensors: dict[str, torch.Tensor]) -> tuple[int, float]:
    """Write a golden of the tensors; return its bytes and the CPU seconds that took."""
    folder.mkdir()
    patterns = [pattern for pattern in RULES if any(fnmatch(name, pattern) for name in tensors)]
    names = ", ".join(f'"{pattern}"' for pattern in patterns)
    rules = ", ".join(f'"{pattern}": {RULES[pattern]}' for pattern in patterns)
    (folder / "s.yaml").write_text(SPEC.format(golden=FORMS[form], tensors=names, rules=rules), encoding="utf-8")
    loaded = load_specs([str(folder / "s.yaml")])
    if loaded.diagnostics:
        sys.exit(str(loaded.diagnostics[0]))
    tokens = len(tensors["logits"])
    sources = {name: MemorySource(name, tensor) for name, tensor in tensors.items()}
    capture = LoadedCapture(tuple(range(tokens)), sources, None, {})
    begun = time.process_time()
    write_new(make_golden(loaded.cases[0], [Captured(capture, {"device": "cpu"})], reason="to be measured"))
    seconds = time.process_time() - begun
    return sum(file.stat().st_size for file in folder.rglob("sized*")), seconds


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="4,16,64", help="sizes (default 4,16,64)")
    sizes = [int(size) for size in parser.parse_args().tokens.split(",")]
    print(
        f"{'tokens':>6}  {'':12}{'raw, MB':>9}{'full, MB':>10}{'ratio':>8}{'compact, MB':>13}{'ratio':>8}{'CPU s':>8}"
    )
    for tokens in sizes:
        tensors = make_tensors(tokens)
        for label, names in (("all tensors", list(tensors)), ("logits alone", ["logits"])):
            chosen = {name: tensors[name] for name in names}
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                save_file(chosen, folder / "raw.safetensors")
                raw = (folder / "raw.safetensors").stat().st_size
                full, _ = write_golden(folder / "full", "full", chosen)
                compact, seconds = write_golden(folder / "compact", "compact", chosen)
            columns = f"{raw / 1e6:>9.2f}{full / 1e6:>10.2f}{full / raw:>8.3f}"
            print(f"{tokens:>6}  {label:12}{columns}{compact / 1e6:>13.3f}{compact / raw:>8.4f}{seconds:>8.2f}")


if __name__ == "__main__":
    main()
