"""Answers a benchmark's questions in the worker, by what every engine can do: logits of a prompt, and decoding.

A question is `{"context": ids, "continuation": ids}`, answered by `{"logprob": float, "greedy": bool}` (with
`mask_samples`, `mask_id` and `block_length`, by an estimate: see `engines.masked_likelihood`), or
`{"prompt": ids, "max_new_tokens": int, "stop": texts}`, answered by `{"token_ids": ids}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from specrunner.engines.masked_likelihood import estimate_likelihood
from specrunner.errors import ModelUnsupported
from specrunner.spec.model import Decode

if TYPE_CHECKING:
    from specrunner.engines.base import Engine


def answer_questions(
    engine: Engine, questions: Sequence[Mapping[str, Any]], decode: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Answer questions in their order.

    Args:
        engine: the loaded engine.
        questions: log-likelihood and generation questions.
        decode: how to decode, a `Decode`'s fields without `max_new_tokens`; None is greedy.

    Raises:
        ModelUnsupported: a log-likelihood is asked of a model that has none (block diffusion).
    """
    answers: dict[int, dict[str, Any]] = {}
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, question in enumerate(questions):
        if "mask_samples" in question:
            answers[index] = estimate_likelihood(engine, question)
        elif "continuation" in question:
            # Answers that differ only in their last token are read off the same forward.
            groups.setdefault((*question["context"], *question["continuation"][:-1]), []).append(index)
        else:
            how = Decode(**{**(decode or {}), "max_new_tokens": question["max_new_tokens"]})
            ids = engine.generate(question["prompt"], how, tuple(question["stop"]))
            answers[index] = {"token_ids": [int(token) for token in ids]}
    if groups and not engine.is_causal():
        raise ModelUnsupported(
            "the model does not predict the next token, so it gives no log-likelihood of a continuation",
            help="take a task whose answers are generated, such as gsm8k_cot, or state `likelihood: {samples: 128}`",
        )
    asked = [(tokens, [questions[index]["continuation"] for index in indices]) for tokens, indices in groups.items()]
    scored = engine.score_continuations(asked) if asked else []
    if scored is None:
        scored = [score_by_logits(engine, tokens, continuations) for tokens, continuations in asked]
    for indices, found in zip(groups.values(), scored, strict=True):
        answers |= dict(zip(indices, found, strict=True))
    return [answers[index] for index in range(len(questions))]


def score_by_logits(
    engine: Engine, tokens: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Score the continuations of one prompt by the logits of one forward."""
    logits = engine.read_logits(tokens)
    return [score_continuation(logits, continuation) for continuation in continuations]


def score_continuation(logits: Any, continuation: Sequence[int]) -> dict[str, Any]:
    """Score the tokens that follow a prompt.

    Args:
        logits: [tokens, vocabulary], a row for each token of context and continuation but the last.
        continuation: ids; the last `len(continuation)` rows predict them.

    Returns:
        `logprob`, the sum of natural log-probabilities by a softmax in float32, and `greedy`, whether each token is
        the most probable one.
    """
    import torch

    rows = torch.as_tensor(logits)[-len(continuation) :]
    rows = rows if rows.dtype == torch.float64 else rows.float()
    logprobs = torch.log_softmax(rows, dim=-1)
    wanted = torch.tensor(list(continuation), dtype=torch.long, device=rows.device)
    chosen = logprobs.gather(1, wanted.unsqueeze(1)).squeeze(1)
    return {"logprob": float(chosen.sum()), "greedy": bool((logprobs.argmax(dim=-1) == wanted).all())}
