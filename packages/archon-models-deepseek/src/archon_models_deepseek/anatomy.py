"""The anatomy of DeepSeek-V3, read from the entries of a ``config.json``. Imports neither torch nor transformers.

Absent entries have the defaults of transformers' configuration class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from archon_core.models.anatomy import (
    AttentionAnatomy,
    ExpertsAnatomy,
    LatentAnatomy,
    LayerAnatomy,
    ModelAnatomy,
    WeightShape,
)
from archon_core.models.decoder_anatomy import Entries, decoder, decoder_layer, linear, norm
from archon_core.models.parallel_plan import HeadCounts


def anatomy(entries: Mapping[str, Any], *, critic: bool = False) -> ModelAnatomy:
    """The anatomy of the model that a ``config.json`` describes.

    Raises:
        ModelError: an entry that its size depends on is missing, or is not a positive integer.
    """
    return _Reader(Entries(entries)).model(critic=critic)


class _Reader:
    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._hidden = entries.size("hidden_size")
        self._n_heads = entries.size("num_attention_heads")
        self._query_rank = entries.optional_size("q_lora_rank", 1536) or 0
        self._rank = entries.size("kv_lora_rank", 512)
        self._content = entries.size("qk_nope_head_dim", 128)
        self._rotated = entries.size("qk_rope_head_dim", 64)
        self._value = entries.size("v_head_dim", 128)

    def model(self, *, critic: bool) -> ModelAnatomy:
        n_dense = self._entries.get("first_k_dense_replace", 3)
        return decoder(
            self._hidden,
            self._entries.size("vocab_size"),
            tuple(self._layer(number >= n_dense) for number in range(self._entries.size("num_hidden_layers"))),
            tied=self._entries.flag("tie_word_embeddings"),
            critic=critic,
        )

    def _layer(self, is_sparse: bool) -> LayerAnatomy:
        experts = self._experts() if is_sparse else None
        return decoder_layer(
            self._hidden,
            self._attention_weights(),
            AttentionAnatomy(
                heads=HeadCounts(self._n_heads, self._n_heads),
                head_dim=self._content + self._rotated,
                value_dim=self._value,
                rotated_dim=self._rotated,
                latent=LatentAnatomy(self._query_rank, self._rank),
            ),
            experts=experts,
            intermediate=0 if experts else self._entries.size("intermediate_size"),
        )

    def _attention_weights(self) -> Iterator[WeightShape]:
        has_bias, rank = self._entries.flag("attention_bias"), self._query_rank
        queries = self._n_heads * (self._content + self._rotated)
        if rank:
            yield from linear("attention.q_a_proj", rank, self._hidden, "replicated", bias=has_bias)
            yield norm("attention.q_a_norm", rank, "replicated")
            yield from linear("attention.q_b_proj", queries, rank, "column")
        else:
            yield from linear("attention.q_proj", queries, self._hidden, "column")
        shared = self._rank + self._rotated
        yield from linear("attention.kv_a_proj", shared, self._hidden, "replicated", bias=has_bias)
        yield norm("attention.kv_a_norm", self._rank, "replicated")
        keys_values = self._n_heads * (self._content + self._value)
        yield from linear("attention.kv_b_proj", keys_values, self._rank, "column")
        values = self._n_heads * self._value
        yield from linear("attention.o_proj", self._hidden, values, "row", bias=has_bias)

    def _experts(self) -> ExpertsAnatomy:
        entries = self._entries
        inner = entries.size("moe_intermediate_size", 2048)
        return ExpertsAnatomy(
            n_experts=entries.size("n_routed_experts", 256),
            top_k=entries.size("num_experts_per_tok", 8),
            intermediate_size=inner,
            shared_intermediate_size=inner * (entries.get("n_shared_experts", 1) or 0),
        )
