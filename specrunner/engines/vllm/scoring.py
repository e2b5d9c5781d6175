"""Log-likelihoods by vLLM's own `prompt_logprobs`: many prompts in one call, which its scheduler batches as it can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specrunner.engines.base import ScoredPrompt
from specrunner.errors import CaptureIncomplete


def score_prompts(llm: Any, groups: Sequence[ScoredPrompt]) -> list[list[dict[str, Any]]]:
    """Score continuations, see `Engine.score_continuations`; vLLM's log-softmax is in float32.

    Args:
        llm: a loaded `vllm.LLM` with causal attention.
        groups: prompts and their continuations.

    Raises:
        CaptureIncomplete: a log-probability is missing.
    """
    from vllm import SamplingParams

    prompts, parameters = [], []
    for tokens, continuations in groups:
        prompts.append({"prompt_token_ids": list(tokens)})
        parameters.append(
            SamplingParams(
                temperature=0.0,
                max_tokens=1,
                ignore_eos=True,
                detokenize=False,
                prompt_logprobs=0 if len(tokens) > 1 else None,
                logprob_token_ids=sorted({continuation[-1] for continuation in continuations}),
            )
        )
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    return [
        [read_score(output, tokens, continuation) for continuation in continuations]
        for output, (tokens, continuations) in zip(outputs, groups, strict=True)
    ]


def read_score(output: Any, tokens: Sequence[int], continuation: Sequence[int]) -> dict[str, Any]:
    """Add up the log-probabilities of one continuation.

    Args:
        output: vLLM's `RequestOutput` of the prompt.
        tokens: the prompt's ids.
        continuation: ids, all but the last at the prompt's end.
    """
    sampled = output.outputs[0]
    try:
        places = range(len(tokens) - len(continuation) + 1, len(tokens))
        known = [output.prompt_logprobs[place][tokens[place]] for place in places]
        last = sampled.logprobs[0][continuation[-1]]
    except (KeyError, IndexError, TypeError) as error:
        raise CaptureIncomplete(f"vllm gave no log-probability of a token: {type(error).__name__} {error}") from error
    greedy = all(logprob.rank == 1 for logprob in known) and sampled.token_ids[0] == continuation[-1]
    return {"logprob": sum(logprob.logprob for logprob in known) + last.logprob, "greedy": greedy}
