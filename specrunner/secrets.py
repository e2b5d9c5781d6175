"""Secrets taken out of what is kept: logs, messages, facts and options, before they reach a report or a golden.

A secret is the value of an environment variable whose name says so (`HF_TOKEN`, `AWS_SECRET_ACCESS_KEY`), a user's part
of a URL, a token by its shape, or a text under a key such as `password`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

REDACTED = "[redacted]"

SHORTEST = 6
"""Characters of the shortest value that is taken for a secret: `false` and `1` are none."""

_SHORT, _MOST_CLEAN = 256, 20_000
"""Characters and number of the texts without a secret that a redactor remembers."""

_LONG, _MOST_FACTS = 20_000, 500
"""The same of whole mappings, as JSON."""

_SECRET_NAME = re.compile(r"(?:TOKEN|SECRET|KEY|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH)S?(?=_|\d|$)", re.IGNORECASE)
_PLACE = re.compile(r"_(?:PATH|FILE|DIR|FOLDER|SOCK)$", re.IGNORECASE)
_SECRET_KEY = re.compile(
    r"^token$|(?:hf|hub|auth|access|api|bearer|refresh|private|secret)[_-]?(?:token|key)$"
    r"|(?:secret|password|passwd|passphrase|credentials?|authorization)$",
    re.IGNORECASE,
)
_SHAPES = (
    r"(?<=://)[^/?#\s@'\"<>]+(?=@)",
    r"\bhf_[A-Za-z0-9]{20,}",
    r"\bsk-[A-Za-z0-9_-]{20,}",
    r"\bgh[pousr]_[A-Za-z0-9]{20,}",
    r"\bgithub_pat_[A-Za-z0-9_]{20,}",
    r"\bglpat-[A-Za-z0-9_-]{20,}",
    r"\bAKIA[0-9A-Z]{16}\b",
    r"(?<=Bearer )[A-Za-z0-9._~+/-]{16,}=*",
)


class Redactor:
    """Takes secrets out of texts.

    Args:
        environ: the variables of the process whose output is kept.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        values = {form for name, value in environ.items() if is_secret(name) for form in _forms(value)}
        known = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
        self._secrets = re.compile("|".join(filter(None, (known, *_SHAPES))))
        self._clean: set[str] = set()
        self._clean_values: set[str] = set()

    def redact(self, text: str) -> str:
        """Return `text` with every secret replaced."""
        if text in self._clean:
            return text
        found = self._secrets.sub(REDACTED, text)
        if found == text and len(text) <= _SHORT and len(self._clean) < _MOST_CLEAN:
            self._clean.add(text)  # facts repeat the same names and versions for every case
        return found

    def redact_values(self, value: Any) -> Any:
        """Return mappings and lists with the secrets taken out of all their texts, keys included.

        A mapping in which there is none may come back as it is.
        """
        if not value or not isinstance(value, Mapping):
            return self._redact_values(value)
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            return self._redact_values(value)
        if text in self._clean_values:
            return value
        found = self._redact_values(value)
        if found == value and len(text) <= _LONG and len(self._clean_values) < _MOST_FACTS:
            self._clean_values.add(text)  # and the same facts of their engines
        return found

    def _redact_values(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, Mapping):
            return {
                self.redact(key) if isinstance(key, str) else key: REDACTED
                if isinstance(item, str) and item and isinstance(key, str) and is_secret_key(key)
                else self._redact_values(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return type(value)([self._redact_values(item) for item in value])
        return value


@lru_cache(maxsize=4096)
def is_secret_key(key: str) -> bool:
    """Tell whether a text under this key is a secret whatever it is."""
    return _SECRET_KEY.search(key) is not None


def is_secret(name: str) -> bool:
    """Tell whether a variable's name says that its value is a secret; the place of one is none."""
    return _SECRET_NAME.search(name) is not None and _PLACE.search(name) is None


def _forms(value: str) -> set[str]:
    """Return the ways in which a value may be printed: as it is, line by line, in a URL, and as JSON."""
    parts = {value.strip(), *(line.strip() for line in value.splitlines())}
    forms = {form for part in parts for form in (part, quote(part, safe=""), quote_plus(part), json.dumps(part)[1:-1])}
    return {form for form in forms if len(form) >= SHORTEST}


@cache
def own_redactor() -> Redactor:
    """Return the redactor of this process's environment, as it was when it was first asked for."""
    return Redactor(os.environ)
