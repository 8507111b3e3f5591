"""Finds stop texts in a completion while it grows. A stop text may begin in one token and end in another.

Texts are matched on the decoded text with special tokens. Decoding every token alone would lose characters that several
tokens spell, and spaces that a tokenizer drops at the start of a text; decoding everything again for every token would
take quadratic time. So the last tokens are decoded with and without the new one, and the difference is its text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from archon_core.contracts.rollout import Completion, GenerationRequest
from archon_core.errors import ConfigError

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
        self._context_text = ""
        self._unread: list[int] = []
        # The end of the known text, and the number of characters after it that have been searched.
        self._tail = ""
        self._n_searched = 0
        self._n_kept = max(map(len, self._texts)) - 1

    def add(self, token: int) -> str | None:
        """Read the next token of the completion.

        Returns:
            The end of the completion's text, from the first stop text on, if the token completes one; else ``None``.
        """
        self._n_tokens += 1
        self._unread.append(token)
        known = [*self._context, *self._unread]
        after = self._decode(known)
        text, n_old = self._tail + after[len(self._context_text) :], len(self._tail) + self._n_searched
        if after.endswith(INCOMPLETE) and len(self._unread) < LONGEST_CHARACTER:
            # The next token may complete the character; the text before it will not change.
            n_whole = max(n_old, len(text.rstrip(INCOMPLETE)))
            self._n_searched = n_whole - len(self._tail)
        else:
            n_whole = len(text)
            self._context, self._context_text = self._unread, self._decode(self._unread)
            if not self._context_text:  # it would not keep a tokenizer from dropping the space of the next token
                self._context, self._context_text = known, after
            self._unread, self._n_searched = [], 0
            self._tail = text[-self._n_kept :] if self._n_kept else ""
        if self._n_tokens <= self._min_new_tokens:
            return None
        # A match must have a character that was not there before.
        starts = [text.find(stop, max(0, n_old - len(stop) + 1), n_whole) for stop in self._texts]
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


def without_stop_texts(request: GenerationRequest) -> GenerationRequest:
    """What a server without a tokenizer gets of a request: only data travels, and ``cut_at_stop_text`` finds the texts.

    Raises:
        ConfigError: the request has stop texts and no ``decode``.
    """
    if request.config.stop and request.decode is None:
        raise ConfigError(
            "gconfig.stop: found stop texts without a decode function; use stop_token_ids, or give requests one"
        )
    return replace(request, decode=None, config=replace(request.config, stop=None))


def cut_at_stop_text(completion: Completion, request: GenerationRequest) -> Completion:
    """A completion that was generated without regard to stop texts, up to the first one.

    An engine that looks for stop texts while it samples draws the same tokens before it, because a token depends on no
    later one.
    """
    config, decode = request.config, request.decode
    if not config.stop:
        return completion
    assert decode is not None, "engines refuse stop texts without a decode function"
    matcher = StopTextMatcher(config.stop, decode, config.min_new_tokens)
    for n_tokens, token in enumerate(completion.token_ids, start=1):
        if matcher.add(token) is None:
            continue
        experts = completion.routed_experts  # without the last token's, which the model never processes
        return replace(
            completion,
            token_ids=completion.token_ids[:n_tokens],
            logprobs=completion.logprobs[:n_tokens],
            versions=completion.versions[:n_tokens],
            stop_reason="stop",
            routed_experts=None if experts is None else experts[: len(request.prompt_ids) + n_tokens - 1],
        )
    return completion
