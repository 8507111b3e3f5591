"""Checks that token-by-token decoding with a cache gives the log-probabilities of one training pass."""

from __future__ import annotations

import torch
from torch import Tensor

from archon_core.contracts.packed import AttentionSettings, HeadInputs, PackedSequences
from archon_testing.model_checks.built import BuiltModel, distance, require
from archon_testing.model_checks.sent_queries import sent_queries_checked

N_PROMPT = 5
N_TOKENS = 18


class PlainCache:
    """Keys and values or states of one sequence; the plainest ``archon_core.contracts.packed.AttentionCache``."""

    def __init__(self) -> None:
        self.layers: dict[str, tuple[Tensor, ...]] = {}

    def states(self, layer: str) -> tuple[Tensor, ...] | None:
        """The states of a recurrent layer."""
        return self.layers.get(layer)

    def keep_states(self, layer: str, states: tuple[Tensor, ...]) -> None:
        """Replace them."""
        self.layers[layer] = states

    def attend(
        self,
        layer: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packed: PackedSequences,
        settings: AttentionSettings,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Append ``k`` and ``v`` [T, kv heads, D] to the cache; attend ``q`` [T, heads, D] to all entries."""
        if layer in self.layers:
            k, v = (torch.cat(pair) for pair in zip(self.layers[layer], (k, v), strict=True))
        self.layers[layer] = (k, v)
        group = q.shape[1] // k.shape[1]
        scores = settings.scale * torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1))
        if settings.softcap is not None:
            scores = settings.softcap * torch.tanh(scores / settings.softcap)
        places = torch.arange(k.shape[0])
        seen = places <= packed.positions[:, None]
        if settings.window is not None:
            seen &= places > packed.positions[:, None] - settings.window
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks[:, None, None].expand(-1, q.shape[0], 1)), dim=-1)
        weights = scores.softmax(-1)[..., : k.shape[0]]
        return torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(group, 1))


@torch.no_grad()
def check_generation(model: BuiltModel) -> None:
    """Compare the distributions of a prompt and of every token after it with those of one pass. That pass also shows
    whether the anatomy is right about ``sends_queries``."""
    ids = model.ids(N_TOKENS)
    with sent_queries_checked(model):
        whole = model.run(ids, (N_TOKENS,), "logits")["logits"].log_softmax(-1)
    cache, rows, start = PlainCache(), [], 0
    for end in (N_PROMPT, *range(N_PROMPT + 1, N_TOKENS + 1)):
        rows.append(_step(model, ids, start, end, cache))
        start = end
    n_layers = len(model.module.layers)
    require(
        len(cache.layers) == n_layers,
        f"{len(cache.layers)} of {n_layers} layers use the cache: hand queries, keys and values to packed.cache, under "
        "a name for every layer, as archon_engine.nn.attention.PackedAttention does",
    )
    stepwise = torch.cat(rows).log_softmax(-1)
    errors = [distance(found, right) for found, right in zip(stepwise, whole, strict=True)]
    first = next((place for place, error in enumerate(errors) if not error <= model.limit), None)
    require(
        first is None,
        f"log-probabilities at place {first} differ by {errors[first or 0]:.1e} between decoding through a cache and "
        f"one pass (the prompt has {N_PROMPT} tokens): do rotations follow packed.positions, and do keys go into the "
        "cache rotated?",
    )


def _step(model: BuiltModel, ids: Tensor, start: int, end: int, cache: PlainCache) -> Tensor:
    """Logits of tokens ``start`` to ``end``; earlier tokens are in the cache."""
    packed = PackedSequences(
        cu_seqlens=torch.tensor([0, end - start], dtype=torch.int32),
        max_seqlen=end - start,
        positions=torch.arange(start, end),
        lengths=(end - start,),
        head=HeadInputs(outputs=("logits",)),
        cache=cache,
    )
    return model.module(ids[start:end], packed)["logits"]
