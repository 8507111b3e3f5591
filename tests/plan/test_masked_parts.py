"""The parts in which plans count the masks of a CPU are those in which the engine attends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_core.models.anatomy import AttentionAnatomy
from archon_core.models.parallel_plan import HeadCounts
from archon_engine.data.prefix_tree import build_prefix_tree
from archon_engine.data.tree_micro_batch import pack_tree
from archon_engine.nn.attention_backends import sdpa
from archon_plan import masked_parts
from archon_plan.setting import SharedPrompt, Tokens


@pytest.fixture
def attended(monkeypatch):
    """For every call with a mask: sequences, rows and keys. Nothing is computed."""
    made = []

    def attend(q, k, v, mask, *_, **__):
        if mask is not None:
            made.append((q.shape[0], q.shape[2], k.shape[2]))
        return q

    monkeypatch.setattr(sdpa, "_attend_masked", attend)
    return made


def planned(window: int | None, sinks: bool, tokens: Tokens) -> list[tuple[float, int, int]]:
    attention = AttentionAnatomy(HeadCounts(4, 2), 8, 8, window=window, sinks=sinks)
    parts = masked_parts.masked_parts(attention, tokens)
    return [(pytest.approx(part.sequences * tokens.per_micro_batch), part.rows, part.keys) for part in parts]


def attend(packed: PackedSequences, window: int | None, sinks: bool) -> None:
    q = torch.empty(len(packed.positions), 4, 1)
    settings = AttentionSettings(scale=1.0, window=window, sinks=sinks)
    sdpa.attend(q, q, q, packed, settings, torch.empty(4) if sinks else None)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 100, 1500, 4000])
@pytest.mark.parametrize("length", [700, 1024, 3000])
def test_whole_sequences(attended, length, window, sinks):
    attend(PackedSequences.from_lengths((length,) * 3), window, sinks)
    assert attended == planned(window, sinks, Tokens(3 * length, sequence=length))
    assert bool(attended) == (sinks or (window or length) < length)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 100, 4000])
def test_samples_of_a_prompt(attended, window, sinks):
    prompt, completion, samples = 1500, 1200, 3
    rows = [[p] * prompt + [100 + p * samples + s] * completion for p in range(2) for s in range(samples)]
    tree = build_prefix_tree(np.array(rows).reshape(-1), [prompt + completion] * len(rows))
    attend(pack_tree(tree, [prompt + completion] * len(rows), 0), window, sinks)
    tokens = Tokens(tree.n_tokens, sequence=prompt + completion, shared=SharedPrompt(prompt, samples))
    assert attended == planned(window, sinks, tokens)


def test_parts_have_as_many_rows_as_those_of_the_engine():
    assert masked_parts.MASKED_QUERIES == sdpa.MOST_MASKED_QUERIES
