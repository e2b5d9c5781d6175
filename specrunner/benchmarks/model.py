"""lm-eval's model class over a live session: it tokenises as lm-eval's `hf` model does, and asks the session.

Questions are token ids, so that every engine is asked the very same ones. What would be cut to fit is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)

from specrunner.errors import CaptureIncomplete, ModelUnsupported

Ask = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
"""Asks the session questions (see `engines.questions`) and returns its answers in their order."""

DEFAULT_MAX_GEN_TOKS = 256


class SessionModel(TemplateLM):  # type: ignore[misc]
    """A model whose numbers come from a session.

    Args:
        ask: asks the session.
        tokenizer: the checkpoint's tokenizer.
        config: the checkpoint's configuration.
        add_bos_token: whether special tokens are added to texts; None leaves it to the tokenizer.
        max_length: tokens that prompt and answer may have together; None takes the model's own limit.
        max_gen_toks: the most tokens to generate; None takes the task's own limit.
        masks: `mask_samples`, `mask_id` and `block_length` of log-likelihood questions to a diffusion model.

    Attributes:
        tokens: by the texts of a log-likelihood question, how many tokens context and continuation have.
        prompts: by the text of a generation question, how many tokens it has.
    """

    def __init__(
        self,
        ask: Ask,
        tokenizer: Any,
        config: Any,
        add_bos_token: bool | None = None,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        masks: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self._ask = ask
        self.tokenizer = tokenizer
        self._add_bos_token = add_bos_token
        self.max_length = max_length or resolve_max_length(config, tokenizer)
        self._max_gen_toks = max_gen_toks
        self.masks = dict(masks or {})
        self.tokens: dict[tuple[str, str], tuple[int, int]] = {}
        self.prompts: dict[str, int] = {}

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The id that stands for an empty context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, part of lm-eval's cache keys (its caches are off)."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text; one that starts with the prefix token gets no second one."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        return self._encode(string, add_special_tokens, prefix)

    def _encode(self, string: str, add_special_tokens: bool | None, prefix: str | None) -> list[int]:
        if add_special_tokens is None:
            add_special_tokens = False if has_bos_prefix(string, prefix) else self._add_bos_token
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **special))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a chat by the checkpoint's template."""
        rendered: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return rendered

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        questions = []
        for texts, context, continuation in requests:
            # A causal model scores the last token without reading it.
            self._check_length(len(context) + len(continuation) - (not self.masks), texts[0])
            self.tokens[texts] = len(context), len(continuation)
            questions.append({"context": context, "continuation": continuation, **self.masks})
        answers = self._ask(questions)
        check_likelihoods([answer["logprob"] for answer in answers])
        return [(float(answer["logprob"]), bool(answer["greedy"])) for answer in answers]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the session generates, up to the first stop text."""
        questions, stops = [], []
        eos = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        for request in requests:
            text, keywords = request.args
            chosen: dict[str, Any] = dict(normalize_gen_kwargs(dict(keywords), DEFAULT_MAX_GEN_TOKS))
            if chosen.get("do_sample"):
                raise ModelUnsupported("the task samples its answers; only greedy generation is supported")
            stop = handle_stop_sequences(list(chosen.get("until") or ()), eos=eos)
            most = self._max_gen_toks or int(chosen["max_gen_toks"])
            prompt = self._encode(text, None, self.tokenizer.bos_token)
            self._check_length(len(prompt) + most, text)
            self.prompts[text] = len(prompt)
            questions.append({"prompt": prompt, "max_new_tokens": most, "stop": stop})
            stops.append(stop)
        texts = []
        for answer, stop in zip(self._ask(questions), stops, strict=True):
            text = self.tokenizer.decode(answer["token_ids"], skip_special_tokens=True)
            texts.append(postprocess_generated_text(text, stop, None))
        return texts

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Refuse: no task that specs can name asks for it."""
        raise ModelUnsupported("perplexity over windows of a text is not supported")

    def _check_length(self, tokens: int, text: str) -> None:
        if tokens > self.max_length:
            raise ModelUnsupported(
                f"a question of {tokens} tokens is longer than the model's {self.max_length} and would be cut: "
                f"{text[:60]!r}",
                help="ask with fewer shots or a smaller max_gen_toks, or leave the question out",
            )


def check_likelihoods(logprobs: Sequence[float]) -> None:
    """Refuse log-likelihoods that cannot come from a model.

    Raises:
        CaptureIncomplete: one is no number, or all of several are 0.
    """
    if any(not value <= 0.0 or value == float("-inf") for value in logprobs):
        wrong = next(value for value in logprobs if not value <= 0.0 or value == float("-inf"))
        raise CaptureIncomplete(f"a log-likelihood is {wrong}")
    if len(logprobs) > 1 and not any(logprobs):
        raise CaptureIncomplete(f"all {len(logprobs)} log-likelihoods are 0.0: the engine does not compute them")
