"""A checkpoint's tokenizer without Transformers, where the checkpoint has a `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class PlainTokenizer:
    """The part of a Transformers tokenizer that prompts need, over the library `tokenizers`.

    Args:
        tokenizer: with truncation and padding off.
        folder: the checkpoint, for its chat template.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        self._full: Any = None

    @classmethod
    def load(cls, folder: Path) -> PlainTokenizer | None:
        """Read `tokenizer.json`; None where there is none."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            return None
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, folder)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Return `input_ids`."""
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's chat template."""
        return self._with_template().chat_template  # type: ignore[no-any-return]

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        """Render messages; templates are Transformers' own language, so this imports it."""
        return self._with_template().apply_chat_template(messages, **options)  # type: ignore[no-any-return]

    def _with_template(self) -> Any:
        if self._full is None:
            from transformers import PreTrainedTokenizerFast

            # The class is named, since `AutoTokenizer` may run the checkpoint's own code.
            self._full = PreTrainedTokenizerFast.from_pretrained(self._folder)
        return self._full
