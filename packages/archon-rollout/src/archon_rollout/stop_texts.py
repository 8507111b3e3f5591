"""Finds stop texts in a completion while it grows. A stop text may begin in one token and end in another.

Texts are matched on the decoded text with special tokens. Decoding every token alone would lose characters that several
tokens spell, and spaces that a tokenizer drops at the start of a text; decoding everything again for every token would
take quadratic time. So the last tokens are decoded with and without the new one, and the difference is its text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""How tokenizers decode bytes that are not a whole character."""

LONGEST_CHARACTER = 4
"""Bytes, and so tokens, of the longest character in UTF-8."""


class StopTextMatcher:
    """Reads one completion token by token.

    Args:
        texts: at least one, each with at least one character.
        decode: token ids -> text with special tokens.
        min_new_tokens: a text that is complete within this many tokens does not count.
    """

    def __init__(self, texts: Sequence[str], decode: Decode, min_new_tokens: int = 0) -> None:
        self._texts = tuple(texts)
        self._decode = decode
        self._min_new_tokens = min_new_tokens
        self._n_tokens = 0
        # The tokens whose text is known and serves as context, then those whose text is not known yet.
        self._context: list[int] = []
        self._unread: list[int] = []
        self._tail = ""
        self._n_kept = max(map(len, self._texts)) - 1

    def add(self, token: int) -> str | None:
        """Read the next token of the completion.

        Returns:
            The end of the completion's text, from the first stop text on, if the token completes one; else ``None``.
        """
        self._n_tokens += 1
        self._unread.append(token)
        before = self._decode(self._context) if self._context else ""
        after = self._decode([*self._context, *self._unread])
        if after.endswith(INCOMPLETE) and len(self._unread) < LONGEST_CHARACTER:
            return None
        self._context, self._unread = self._unread, []
        text, n_old = self._tail + after[len(before) :], len(self._tail)
        self._tail = text[-self._n_kept :] if self._n_kept else ""
        if self._n_tokens <= self._min_new_tokens:
            return None
        # A match must have a new character.
        starts = [text.find(stop, max(0, n_old - len(stop) + 1)) for stop in self._texts]
        found = [start for start in starts if start >= 0]
        return text[min(found) :] if found else None


def stop_suffix(
    token_ids: Sequence[int], texts: Sequence[str] | None, decode: Decode, min_new_tokens: int = 0
) -> str | None:
    """The end of a whole completion's text, from the stop text that ended it; ``None`` if no stop text did.

    Args:
        token_ids: of the completion; only the last one can complete a stop text.
        texts, decode, min_new_tokens: see ``StopTextMatcher``.
    """
    if not texts:
        return None
    matcher = StopTextMatcher(texts, decode, min_new_tokens)
    found = [matcher.add(token) for token in token_ids]
    return found[-1] if found else None
