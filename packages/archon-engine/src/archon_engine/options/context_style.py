"""Chooses how context ranks share attention: by heads, by gathered keys and values, or both (``archon.cp_style``).

Pure functions of sizes, for dry runs, plans and the engine. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError

ContextStyle = Literal["auto", "ulysses", "gather", "hybrid"]
CONTEXT_STYLES: tuple[ContextStyle, ...] = get_args(ContextStyle)
AUTO: ContextStyle = "auto"


@dataclass(frozen=True)
class ContextSplit:
    """How the context ranks of a pack share its attention: ``groups`` of ``heads`` neighbours each.

    Attributes:
        heads: ranks of a group, which exchange heads; 1 where nobody does.
        groups: number of groups, over which keys and values are gathered; 1 where all ranks exchange heads.
    """

    heads: int = 1
    groups: int = 1

    @property
    def style(self) -> ContextStyle:
        """The style in effect. A single rank counts as ``ulysses``."""
        if self.groups == 1:
            return "ulysses"
        return "gather" if self.heads == 1 else "hybrid"

    def multiple(self, *, in_order: bool = False) -> int:
        """The number of tokens of a pack is a multiple of this (``nn.key_gathering``)."""
        ranks = self.heads * self.groups
        return ranks if self.groups == 1 or in_order else math.lcm(ranks, 2 * self.groups)

    def describe(self) -> str:
        """Such as ``hybrid: heads over 4 ranks, keys and values over 2``."""
        if self.style == "hybrid":
            return f"hybrid: heads over {self.heads} ranks, keys and values over {self.groups}"
        return self.style


@dataclass(frozen=True)
class ContextSizes:
    """The sizes that decide.

    Attributes:
        context: c, context ranks.
        tensor: t, tensor ranks, which divide the heads first.
        query_heads: query heads of the model; 0 without attention.
        neighbours_per_machine: the largest size of groups of neighbouring ranks that lie within a machine; ``None`` if
            unknown, or if all ranks are on one.
    """

    context: int = 1
    tensor: int = 1
    query_heads: int = 0
    neighbours_per_machine: int | None = None

    @property
    def allowed_by_heads(self) -> tuple[int, ...]:
        """The divisors of c among which the heads of a tensor rank can be divided, ascending."""
        return _parts(self.context, self.tensor, self.query_heads)

    @property
    def largest_group(self) -> int:
        """The largest of these below c whose groups lie within a machine."""
        most = self.neighbours_per_machine
        fitting = [
            size
            for size in self.allowed_by_heads
            if size < self.context and (most is None or most % (size * self.tensor) == 0)
        ]
        return max(fitting, default=1)


def split_context(style: str, sizes: ContextSizes, *, option: str) -> ContextSplit:
    """The split of context ranks for ``style``, a value of ``archon.cp_style``.

    Raises:
        ConfigError: ``ulysses``, and c does not divide the heads.
    """
    context, by_heads = sizes.context, sizes.context in sizes.allowed_by_heads
    if not permits(style, sizes):
        allowed = ", ".join(str(size) for size in _divisors(sizes))
        raise ConfigError(
            f"{option}: found ulysses with c{context}; it divides heads among context ranks, so c must divide the "
            f"model's {_heads(sizes)}: {allowed}; write auto, gather or hybrid, which allow any c, or reduce c"
        )
    if style == "ulysses" or (style == AUTO and by_heads):
        return ContextSplit(heads=context)
    if style == "gather":
        return ContextSplit(groups=context)
    heads = sizes.largest_group
    return ContextSplit(heads, context // heads)


def permits(style: str, sizes: ContextSizes) -> bool:
    """Whether context ranks can share attention in ``style``: all but ``ulysses`` work with any number of heads."""
    return style != "ulysses" or sizes.context in sizes.allowed_by_heads


def style_decisions(style: str, sizes: ContextSizes, split: ContextSplit, *, option: str) -> Iterator[Decision]:
    """The decision about ``style``, unless it was written and is in effect as it is."""
    context, effective = sizes.context, split.describe()
    if context == 1 or (style == split.style and style != "hybrid"):
        return
    # A written ``hybrid`` leaves c itself out, even where c divides the heads.
    part = "proper part" if context in sizes.allowed_by_heads else "part"
    if split.style == "ulysses":
        reason = f"c{context} divides {_heads(sizes)}, so context ranks exchange heads"
    elif split.style == "hybrid":
        reason = f"{split.heads} is the largest {part} of c{context} that divides {_heads(sizes)}{_within(sizes)}"
    else:
        reason = f"no {part} of c{context} above 1 divides {_heads(sizes)}{_within(sizes)}"
    yield Decision(option, style, effective, reason)


def padded_multiple(sizes: ContextSizes, split: ContextSplit, *, in_order: bool = False) -> int:
    """The number of tokens of a micro-batch is a multiple of this."""
    return math.lcm(sizes.context * sizes.tensor, split.multiple(in_order=in_order))


def padding_decision(
    asked: int, sizes: ContextSizes, split: ContextSplit, *, in_order: bool = False, option: str
) -> Decision | None:
    """The decision about ``batch_align_to``; ``None`` if nobody set it, or if it is in effect as it is.

    Args:
        asked: its value; 1 (default) adds no constraint.
        sizes: of the layout and the model.
        split: of the context ranks.
        in_order: whether context ranks hold parts of a pack in its order.
        option: its dotted name.
    """
    ranks = sizes.context * sizes.tensor
    multiple = math.lcm(asked, padded_multiple(sizes, split, in_order=in_order))
    if multiple == asked or asked == 1:
        return None
    reason = f"tokens are sharded over {ranks} ranks (cp x tp)"
    if multiple != math.lcm(asked, ranks):
        reason += f", and {split.groups} groups of context ranks gather keys and values, of which each holds two equal"
        reason += " blocks of tokens"
    reason += ", so the padded length must be a multiple of batch_align_to and of these"
    return Decision(option, str(asked), str(multiple), reason)


def context_decisions(
    style: str, asked: int, sizes: ContextSizes, split: ContextSplit, *, in_order: bool, role: str
) -> list[Decision]:
    """The decisions about ``archon.cp_style`` (``style``) and ``batch_align_to`` (``asked``)."""
    padding = padding_decision(asked, sizes, split, in_order=in_order, option=f"{role}.batch_align_to")
    decisions = style_decisions(style, sizes, split, option=f"{role}.archon.cp_style")
    return [*decisions, *([] if padding is None else [padding])]


@lru_cache(maxsize=4096)
def _parts(context: int, tensor: int, query_heads: int) -> tuple[int, ...]:
    # Searches for layouts ask many times.
    fitting = (size for size in range(1, context + 1) if context % size == 0 and query_heads % (size * tensor) == 0)
    return tuple(fitting) or (1,)


def _divisors(sizes: ContextSizes) -> list[int]:
    heads = sizes.query_heads // sizes.tensor
    return [size for size in range(1, heads + 1) if heads % size == 0]


def _heads(sizes: ContextSizes) -> str:
    """Such as ``16 attention heads, of which each of 2 tensor ranks has 8``."""
    text = f"{sizes.query_heads} attention heads"
    if sizes.tensor > 1:
        text += f", of which each of {sizes.tensor} tensor ranks has {sizes.query_heads // sizes.tensor}"
    return text


def _within(sizes: ContextSizes) -> str:
    """The condition of machines on groups of context ranks, as the end of a sentence."""
    number = sizes.neighbours_per_machine
    if number is None:
        return ""
    return f" and keeps groups within a machine (every {number} ranks, counted from the first, are on one)"
