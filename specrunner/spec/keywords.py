"""Keyword expressions (`-k`): `logits and not (bf16 or slow)`.

    expression := term ("or" term)*
    term       := factor ("and" factor)*
    factor     := "not" factor | "(" expression ")" | WORD

A word holds where it is part of the case's suite, name, id or one of its tags, whatever the capitals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from specrunner.errors import UsageError

Matcher = Callable[[Sequence[str]], bool]
"""Takes the names of a case, in lower case."""

MAX_DEPTH = 100
_TOKEN = re.compile(r"[()]|[^\s()]+")


def compile_keywords(text: str) -> Matcher:
    """Return a function that tells whether a case's names satisfy an expression.

    Raises:
        UsageError: with the column of the mistake.
    """
    return _Parser(text).parse()


class _Parser:
    """Recursive descent over the words of one expression."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [(match.group(), match.start()) for match in _TOKEN.finditer(text)]
        self._next = 0
        self._depth = 0

    def parse(self) -> Matcher:
        if not self._tokens:
            raise UsageError("-k: the expression is empty")
        matcher = self._expression()
        if self._peek():
            self._fail(f"`{self._peek()}` cannot stand here")
        return matcher

    def _peek(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def _take(self, word: str) -> bool:
        if self._peek().lower() != word:
            return False
        self._next += 1
        return True

    def _fail(self, message: str) -> None:
        at = self._tokens[self._next][1] if self._next < len(self._tokens) else len(self._text)
        raise UsageError(
            f"-k: {message} (column {at + 1} of `{self._text}`)",
            help="combine parts of names and tags by `and`, `or`, `not` and parentheses",
        )

    def _expression(self) -> Matcher:
        parts = [self._term()]
        while self._take("or"):
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else lambda names: any(part(names) for part in parts)

    def _term(self) -> Matcher:
        parts = [self._factor()]
        while self._take("and"):
            parts.append(self._factor())
        return parts[0] if len(parts) == 1 else lambda names: all(part(names) for part in parts)

    def _factor(self) -> Matcher:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"nested more than {MAX_DEPTH} deep")
        try:
            if self._take("not"):
                inner = self._factor()
                return lambda names: not inner(names)
            if self._take("("):
                inner = self._expression()
                if not self._take(")"):
                    self._fail("a `)` is missing")
                return inner
            return self._word()
        finally:
            self._depth -= 1

    def _word(self) -> Matcher:
        word = self._peek().lower()
        if word in ("", ")", "and", "or"):
            self._fail(f"expected a word before `{word}`" if word else "a word is missing at the end")
        self._next += 1
        return lambda names: any(word in name for name in names)
