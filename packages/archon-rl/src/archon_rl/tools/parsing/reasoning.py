"""Reasoning between ``<think>`` and ``</think>``, before the answer."""

from __future__ import annotations

OPENING, CLOSING = "<think>", "</think>"


def qwen3(text: str) -> tuple[str, str]:
    """Reasoning and answer of a Qwen3 model, which may leave the reasoning out.

    >>> qwen3("<think>2 and 2</think>4")
    ('2 and 2', '4')
    >>> qwen3("4")
    ('', '4')
    >>> qwen3("<think>2 and")
    ('2 and', '')
    """
    begun = text.lstrip().startswith(OPENING)
    if not begun and CLOSING not in text:
        return "", text
    return deepseek_r1(text)


def deepseek_r1(text: str) -> tuple[str, str]:
    """Reasoning and answer of a model whose prompt may already open the reasoning: text without any marker is
    unfinished reasoning.

    >>> deepseek_r1("2 and 2</think>4")
    ('2 and 2', '4')
    >>> deepseek_r1("2 and")
    ('2 and', '')
    """
    reasoning, _, answer = text.lstrip().removeprefix(OPENING).partition(CLOSING)
    return reasoning.strip(), answer.lstrip("\n")
