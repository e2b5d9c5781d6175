"""Transformers by hand: load, one forward a prompt, every layer's output and all logits held until the next one."""

from __future__ import annotations

import time

import torch
import transformers
from common import read_arguments, tell_times


def main() -> None:
    path, prompts = read_arguments()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(_module, _inputs, output):  # type: ignore[no-untyped-def]
            kept[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(f"layers.{index}"))
    loaded, rows = time.perf_counter(), 0
    with torch.inference_mode():
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            kept["logits"] = model(input_ids=ids, use_cache=False).logits.clone()
            rows += kept["logits"].shape[1]
    tell_times(loaded, rows)


if __name__ == "__main__":
    main()
