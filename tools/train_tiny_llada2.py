"""Train, export and evaluate the tiny LLaDA2 checkpoint of `specrunner/models/tiny_llada2`.

    python tools/train_tiny_llada2.py --train                       # about half an hour on one CPU thread
    python tools/train_tiny_llada2.py --evaluate [--engine oracle]  # held-out accuracy of the exported checkpoint

Training goes through the checkpoint's own modeling file. One sequence holds every answer of a conversation twice: the
clean text, and behind it noised copies of each answer's blocks, which see the clean blocks before them and themselves
(the attention of block diffusion, for all blocks in one forward). Routing is balanced without an auxiliary loss: after
each step the bias of an expert with too few tokens rises, and that of one with too many falls.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_llada2_tasks import (
    EOS,
    MASK,
    SPECIAL_TOKENS,
    Example,
    encode,
    held_out_examples,
    training_conversations,
)
from torch import Tensor, nn

CHECKPOINT = Path(__file__).parent.parent / "specrunner" / "models" / "tiny_llada2"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


@dataclass(frozen=True, slots=True)
class Sequence:
    """One conversation laid out for training; all lists have one entry per token.

    Attributes:
        tokens: the clean blocks, then the noised blocks, masks in place.
        positions: absolute positions.
        copies: 0 for clean tokens, the number of the noised copy (from 1) for the others.
        targets: the token behind a mask, -100 elsewhere.
        weights: the loss weight of a target.
    """

    tokens: list[int]
    positions: list[int]
    copies: list[int]
    targets: list[int]
    weights: list[float]


def lay_out(conversation: list[Example], length: int, random: Random) -> Sequence:
    """Lay a conversation out in blocks of `length` tokens.

    Each block of each answer occurs twice: all masked, and with masks scattered or in its tail, as decoding meets it.
    """
    clean: list[int] = []
    noised: list[tuple[int, int, int, float]] = []
    copies: list[int] = []
    copy = 0
    for example in conversation:
        prompt, answer = encode(example.prompt), [*encode(example.answer), EOS]
        filled = prompt + answer
        filled += [EOS] * (-len(filled) % length)
        first, stop = len(prompt) // length * length, len(prompt) + len(answer)
        clean = filled[: (len(filled) - 1) // length * length]
        for start in range(first, len(filled), length):
            begin = max(start, len(prompt))
            everything = range(begin, start + length)
            ratio = random.random()
            scattered = [position for position in everything if random.random() < ratio]
            tail = range(random.randint(begin, start + length - 1), start + length)
            for masked in (everything, random.choice((scattered, tail))):
                copy += 1
                for position in range(start, start + length):
                    token, hidden = filled[position], position in masked
                    weight = (1.0 if position < stop else 0.1) if hidden else 0.0
                    noised.append((MASK if hidden else token, position, token if hidden else -100, weight))
                    copies.append(copy)
    return Sequence(
        tokens=clean + [token for token, *_ in noised],
        positions=[*range(len(clean)), *(position for _, position, *_ in noised)],
        copies=[0] * len(clean) + copies,
        targets=[-100] * len(clean) + [target for *_, target, _ in noised],
        weights=[0.0] * len(clean) + [weight for *_, weight in noised],
    )


def make_batches(seed: int, length: int, budget: int) -> Iterator[dict[str, Tensor]]:
    """Yield batches of about `budget` tokens, of sequences of similar size."""
    random = Random(seed)
    conversations = training_conversations(seed)
    while True:
        pool = [lay_out(conversation, length, random) for conversation in islice(conversations, 1024)]
        pool.sort(key=lambda sequence: len(sequence.tokens))
        batches: list[list[Sequence]] = [[]]
        for sequence in pool:
            if (len(batches[-1]) + 1) * len(sequence.tokens) > budget:
                batches.append([])
            batches[-1].append(sequence)
        random.shuffle(batches)
        for batch in batches:
            yield collate(batch, length)


def collate(batch: list[Sequence], length: int) -> dict[str, Tensor]:
    """Pad sequences to one size, and let each token see its own copy's block and the clean blocks before it."""
    size = max(len(sequence.tokens) for sequence in batch)

    def pad(values: Callable[[Sequence], list[Any]], filler: float) -> Tensor:
        return torch.tensor([values(s) + [filler] * (size - len(values(s))) for s in batch])

    positions, copies = pad(lambda s: s.positions, 0), pad(lambda s: s.copies, -1)
    blocks = positions // length
    same = (copies[:, :, None] == copies[:, None, :]) & (blocks[:, :, None] == blocks[:, None, :])
    earlier = (copies[:, None, :] == 0) & (blocks[:, None, :] < blocks[:, :, None])
    return {
        "input_ids": pad(lambda s: s.tokens, EOS),
        "position_ids": positions,
        "attention_mask": (same | earlier)[:, None],
        "targets": pad(lambda s: s.targets, -100),
        "weights": pad(lambda s: s.weights, 0.0),
    }


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for matrices (Jordan et al. 2024, Newton-Schulz in five steps)."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        super().__init__([{"params": group} for group in by_shape.values()], {"lr": lr})
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the parameters from their gradients."""
        for group in self.param_groups:
            gradients = torch.stack([p.grad if p.grad is not None else torch.zeros_like(p) for p in group["params"]])
            state = self.state[group["params"][0]]
            average = state.setdefault("average", torch.zeros_like(gradients))
            average.lerp_(gradients, 1 - self.momentum)
            update = orthogonalise(gradients.lerp(average, self.momentum))
            scale = max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
            for parameter, change in zip(group["params"], update, strict=True):
                parameter.mul_(1 - group["lr"] * self.decay).add_(change, alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push the singular values of a stack of matrices [N, rows, columns] towards 1."""
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    x = (wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x if wide is matrices else x.mT).to(matrices.dtype)


def build_model(seed: int) -> nn.Module:
    """Return an untrained model, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(CHECKPOINT, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True, attn_implementation="sdpa")
    return model.float().train()


def balance_routing(model: nn.Module, rate: float, loads: list[Tensor]) -> None:
    """Move each expert's bias towards an even load (Wang et al. 2024, without an auxiliary loss)."""
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    for gate, load in zip(gates, loads, strict=True):
        gate.expert_bias += rate * (load.mean() - load).sign()
        gate.expert_bias -= gate.expert_bias.mean()


def train(steps: int, seed: int, budget: int, report: int, output: Path) -> nn.Module:
    """Train from scratch.

    Args:
        steps: optimizer steps.
        seed: of the initial weights and the data.
        budget: tokens in a batch.
        report: steps between two lines of progress, and between two exports.
        output: directory of the exports.
    """
    model = build_model(seed)
    named = dict(model.named_parameters())
    apart = [
        p for n, p in named.items() if p.dim() < 2 or n.endswith(("embeddings.weight", "head.weight", "gate.weight"))
    ]
    norms, tables = [p for p in apart if p.dim() < 2], [p for p in apart if p.dim() == 2]
    optimizers: list[torch.optim.Optimizer] = [
        Muon([p for p in named.values() if all(p is not q for q in apart)], lr=0.02),
        torch.optim.AdamW(
            [{"params": norms, "lr": 4e-3}, {"params": tables, "lr": 3e-3}], betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    loads: list[Tensor] = []
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            experts = len(layer.mlp.experts)
            layer.mlp.gate.register_forward_hook(
                lambda module, args, output, n=experts: loads.append(output[0].flatten().bincount(minlength=n).float())
            )
    batches = make_batches(seed, model.config.block_length, budget)
    started, average = time.process_time(), 0.0
    for step in range(steps):
        pace = min(1.0, (step + 1) / 60) * min(1.0, (steps - step) / (0.6 * steps))
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * pace
        batch = next(batches)
        targets, weights = batch.pop("targets"), batch.pop("weights")
        logits = model.lm_head(model.model(**batch).last_hidden_state[targets >= 0])
        weights = weights[targets >= 0]
        losses = F.cross_entropy(logits, targets[targets >= 0], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(apart, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        balance_routing(model, 2e-3 * pace, loads)
        loads.clear()
        average += (loss.item() - average) * max(0.02, 1 / (step + 1))
        if (step + 1) % report == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps} loss {average:.4f} cpu {time.process_time() - started:.0f} s", flush=True)
            export(model, output)
    return model


def export(model: nn.Module, directory: Path) -> None:
    """Write the weights in bfloat16, the routers' biases in float32."""
    tensors = {
        name: tensor.detach().clone().to(torch.float32 if name.endswith("expert_bias") else torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(directory: Path) -> None:
    """Write a byte-level tokenizer: token id = byte value, then the special tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": content, **flags} for content, i in SPECIAL_TOKENS.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letters[byte]: byte for byte in range(256)},
            "merges": [],
        },
    }
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in {"tokenizer.json": tokenizer, "tokenizer_config.json": options}.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_held_out(directory: Path, per_task: int = 20) -> None:
    """Write the held-out prompts with their token ids and answers."""
    prompts = [
        {"task": e.task, "prompt": e.prompt, "answer": e.answer, "token_ids": encode(e.prompt)}
        for e in held_out_examples(per_task)
    ]
    lines = ",\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts)
    (directory / "held_out.json").write_text(f'{{"prompts": [\n{lines}\n]}}\n', encoding="utf-8")


def held_out_prompts(directory: Path = CHECKPOINT) -> list[dict[str, Any]]:
    """Return the held-out prompts: `task`, `prompt`, `answer`, `token_ids`; one of each task in turn."""
    return json.loads((directory / "held_out.json").read_text(encoding="utf-8"))["prompts"]


def make_decoder(engine: str, dtype: str) -> Callable[[list[int]], list[int]]:
    """Return a function from prompt ids to new ids, through the modeling file (`hf`) or the oracle."""
    if engine == "oracle":
        from specrunner.models.llada2 import LLaDA2

        oracle = LLaDA2.load(CHECKPOINT)
        return lambda ids: oracle.decode(ids, max_new_tokens=32, block_length=16, threshold=0.95)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, trust_remote_code=True, dtype=getattr(torch, dtype))
    return lambda ids: model.eval().generate(torch.tensor([ids]), max_new_tokens=32)[0].tolist()


def evaluate(engine: str, dtype: str) -> None:
    """Print the held-out accuracy of each task."""
    decode = make_decoder(engine, dtype)
    right: dict[str, list[bool]] = {}
    started, produced = time.process_time(), 0
    for prompt in held_out_prompts():
        output = decode(prompt["token_ids"])
        produced += len(output)
        right.setdefault(prompt["task"], []).append(output == [*encode(prompt["answer"]), EOS])
    elapsed = time.process_time() - started
    for task, results in right.items():
        print(f"{task:10} {sum(results) / len(results):.2f}  ({sum(results)} of {len(results)})")
    total = [result for results in right.values() for result in results]
    print(f"{'all':10} {sum(total) / len(total):.3f}  ({sum(total)} of {len(total)})")
    print(f"{engine} {dtype if engine == 'hf' else 'float64'}: {produced / elapsed:.0f} tokens per CPU-second")


def main() -> None:
    """Parse the command line and do what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="train and export")
    parser.add_argument("--evaluate", action="store_true", help="print the held-out accuracy of the export")
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="directory of the trained weights")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=2048, help="tokens in a batch")
    parser.add_argument("--report", type=int, default=250, help="steps between exports")
    parser.add_argument("--engine", choices=["hf", "oracle"], default="hf")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.train:
        write_tokenizer(CHECKPOINT)
        write_held_out(CHECKPOINT)
        options.output.mkdir(parents=True, exist_ok=True)
        train(options.steps, options.seed, options.budget, options.report, options.output)
    if options.evaluate:
        evaluate(options.engine, options.dtype)


if __name__ == "__main__":
    main()
