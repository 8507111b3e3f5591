"""The packs on which attention is checked, with the tokens that each query sees.

Legend: T tokens with keys, Q tokens with queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from archon_core.contracts.packed import PackedSequences
from archon_engine.data.prefix_tree import PrefixTree, build_prefix_tree
from archon_engine.data.tree_micro_batch import pack_tree
from archon_engine.nn.key_gathering import part_of_tree

LENGTHS = (1, 130, 7, 64, 257, 33)
N_BEFORE = 75
"""Tokens that only have keys: of the first sequence of ``LENGTHS`` without the shortest one."""
PROMPT, TURN = [1] * 150, [2] * 70
BRANCHES = (
    [*PROMPT, *TURN, 3],
    [*PROMPT, *TURN, *[4] * 90],
    [*PROMPT, *[5] * 140],
    [*PROMPT[:40], 7, 8],
    [6] * 60,
)
"""Sequences that share prefixes of some blocks of a kernel, of a part of one, and none."""
HELD = (range(20, 200), range(390, 480))
"""Two blocks of their tree, as a rank holds them that gathers keys and values."""


@dataclass(frozen=True)
class Pack:
    """Tokens that attend to one another.

    Attributes:
        packed: as attention receives it.
        distances: int64 [Q, T], how far before a query each key lies on its path; negative for keys that it does not
            see.
    """

    packed: PackedSequences
    distances: Tensor


def sequences(device: str) -> Pack:
    """Sequences end to end."""
    return Pack(PackedSequences.from_lengths(LENGTHS, device), _in_sequences(LENGTHS))


def last_tokens(device: str) -> Pack:
    """Queries of the last tokens of a pack, as a rank has them that gathers keys and values."""
    lengths = LENGTHS[1:]
    return Pack(PackedSequences.from_lengths(lengths, device), _in_sequences(lengths)[N_BEFORE:])


def tree(device: str) -> Pack:
    """Shared prefixes, each once, and padding."""
    found, lengths = _tree()
    packed = pack_tree(found, lengths, _padding(found), device)
    return Pack(packed, _on_paths(packed))


def part(device: str) -> Pack:
    """Queries of two blocks of a tree, which see keys of all of it."""
    whole = tree(device)
    assert whole.packed.shared is not None, "prefixes are shared"
    places = torch.cat([torch.arange(held.start, held.stop) for held in HELD])
    return Pack(part_of_tree(whole.packed, whole.packed.shared, HELD), whole.distances[places])


PACKS: Mapping[str, Callable[[str], Pack]] = {"": sequences, "-last": last_tokens, "-tree": tree, "-part": part}
"""Suffix of a check's name -> the pack, on a device."""


def _tree() -> tuple[PrefixTree, list[int]]:
    lengths = [len(branch) for branch in BRANCHES]
    return build_prefix_tree(np.concatenate([np.array(branch) for branch in BRANCHES]), lengths), lengths


def _padding(found: PrefixTree) -> int:
    return -found.n_tokens % 16


def _in_sequences(lengths: Sequence[int]) -> Tensor:
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    places = torch.arange(len(ids))
    return torch.where(ids[:, None] == ids, places[:, None] - places, -1)


def _on_paths(packed: PackedSequences) -> Tensor:
    """From the sequences, not from the paths that attention gets: padding is a sequence behind them."""
    shared = packed.shared
    assert shared is not None, "prefixes are shared"
    n_tokens = sum(packed.lengths)
    distances = torch.full((n_tokens, n_tokens), -1)
    padding = torch.arange(n_tokens - packed.n_padding, n_tokens)
    token_of, sequence_of = shared.token_of.cpu(), shared.sequence_of.cpu()
    for path in (*(token_of[sequence_of == i] for i in range(shared.n_sequences)), padding):
        depth = torch.arange(len(path))
        distances[path[:, None], path] = depth[:, None] - depth
    return distances.clamp(min=-1)
