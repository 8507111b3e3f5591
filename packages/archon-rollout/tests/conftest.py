"""A decoder that is small enough to check by eye, and a trainer that holds it.

Its attention without a cache is the textbook formula, written out per sequence: the oracle for what a cache returns.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from archon_core.contracts.packed import AttentionSettings, HeadInputs, PackedSequences
from archon_core.ranks.ranks import DataRanks
from archon_engine.nn.evaluation import evaluation_mode
from archon_engine.nn.head import LanguageModelHead

VOCABULARY = 23
HEADS, KV_HEADS, HEAD_DIM = 6, 2, 4
HIDDEN = HEADS * HEAD_DIM
MAX_POSITIONS = 64


def textbook_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
    """Causal attention of one sequence: q [L, heads, D], k and v [L, kv heads, D]."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    distance = torch.arange(len(q))[:, None] - torch.arange(len(k))[None, :]
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


class TinyAttention(nn.Module):
    def __init__(self, layer: str, window: int | None) -> None:
        super().__init__()
        self.layer, self.window = layer, window
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
        self.out = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor:
        qkv = self.qkv(x).view(len(x), HEADS + 2 * KV_HEADS, HEAD_DIM)
        q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        scale = HEAD_DIM**-0.5
        if packed.cache is not None:
            attended = packed.cache.attend(self.layer, q, k, v, packed, AttentionSettings(scale, window=self.window))
        else:
            parts = zip(*(t.split(packed.lengths) for t in (q, k, v)), strict=True)
            attended = torch.cat([textbook_attention(*part, scale=scale, window=self.window) for part in parts])
        return self.out(attended.reshape(len(x), HIDDEN))


class TinyLayer(nn.Module):
    def __init__(self, layer: str, window: int | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.attention = TinyAttention(layer, window)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor:
        return x + self.dropout(self.attention(self.norm(x), packed))


class TinyDecoder(nn.Module):
    """Learned positions, two layers, the second one with an optional sliding window."""

    def __init__(
        self,
        *,
        seed: int = 0,
        window: int | None = None,
        sharpness: float = 4.0,
        vocabulary: int = VOCABULARY,
        max_positions: int = MAX_POSITIONS,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, HIDDEN)
        self.places = nn.Embedding(max_positions, HIDDEN)
        self.layers = nn.ModuleDict({"0": TinyLayer("0", None), "1": TinyLayer("1", window)})
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = LanguageModelHead(HIDDEN, vocabulary)
        self.calls: list[int] = []
        self.scale: Tensor | None = None
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        with torch.no_grad():
            self.head.weight *= sharpness / HIDDEN**0.5

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor | dict[str, Tensor]:
        self.calls.append(len(x))
        if self.scale is None:
            # Made at the first use and kept, as models keep rotary tables: it must serve training afterwards.
            self.scale = torch.ones(HIDDEN, dtype=self.embed.weight.dtype)
        hidden = self.embed(x) * self.scale + self.places(packed.positions)
        for layer in self.layers.values():
            hidden = layer(hidden, packed)
        return self.head(self.norm(hidden), packed.head)


class TinyTrainer:
    """The part of a training engine that the local engine asks for."""

    device = torch.device("cpu")

    def __init__(self, module: nn.Module, version: int = 0) -> None:
        self.module = module
        self.version = version
        self.data_ranks = DataRanks()

    def generating(self):
        return evaluation_mode(self.module)

    def forward_batch(self, batch, request):
        assert self.module.training, "forward_batch was called inside generating()"
        rows = batch.input_ids.split(batch.lengths)
        logits = torch.cat([full_logits(self.module, row.tolist()) for row in rows]) / request.temperature
        found = logits.log_softmax(-1).gather(1, batch.targets.clamp(min=0)[:, None])[:, 0]
        return {"logprobs": torch.where(batch.targets >= 0, found, 0.0)}


@torch.no_grad()
def full_logits(module: nn.Module, ids: list[int] | tuple[int, ...]) -> Tensor:
    """Logits [L, V] of one sequence by one forward pass without a cache, in evaluation mode."""
    training = module.training
    module.eval()
    packed = PackedSequences.from_lengths((len(ids),), head=HeadInputs(outputs=("logits",)))
    logits = module(torch.tensor(ids), packed)["logits"]
    module.train(training)
    return logits


@pytest.fixture
def tiny() -> SimpleNamespace:
    """What tests use of this file, which they cannot import."""
    return SimpleNamespace(
        Decoder=TinyDecoder,
        Trainer=TinyTrainer,
        full_logits=full_logits,
        textbook_attention=textbook_attention,
        vocabulary=VOCABULARY,
    )
