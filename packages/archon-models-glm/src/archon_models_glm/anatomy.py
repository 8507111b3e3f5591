"""The anatomy of GLM-4 with experts, from the entries of a ``config.json``. Imports neither torch nor transformers.

Absent entries have the defaults of transformers' configuration class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from archon_core.models.anatomy import AttentionAnatomy, ExpertsAnatomy, LayerAnatomy, ModelAnatomy, WeightShape
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
        n_heads = entries.size("num_attention_heads")
        self._heads = HeadCounts(n_heads, entries.size("num_key_value_heads", 8))
        self._head_dim = entries.size("head_dim", self._hidden // n_heads)
        rope = entries.get("rope_parameters") or {}
        share = rope.get("partial_rotary_factor", entries.get("partial_rotary_factor", 0.5))
        self._rotated_dim = int(self._head_dim * share)
        self._has_head_norms = entries.flag("use_qk_norm")

    def model(self, *, critic: bool) -> ModelAnatomy:
        n_dense = self._entries.get("first_k_dense_replace", 1)
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
                heads=self._heads,
                head_dim=self._head_dim,
                value_dim=self._head_dim,
                head_norms=self._has_head_norms,
                rotated_dim=self._rotated_dim,
            ),
            experts=experts,
            intermediate=0 if experts else self._entries.size("intermediate_size"),
        )

    def _attention_weights(self) -> Iterator[WeightShape]:
        queries, keys = self._heads.query * self._head_dim, self._heads.key_value * self._head_dim
        has_bias = self._entries.flag("attention_bias")
        for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from linear(f"attention.{name}", outputs, self._hidden, "column", bias=has_bias)
        yield from linear("attention.o_proj", self._hidden, queries, "row")
        if self._has_head_norms:
            yield norm("attention.q_norm", self._head_dim, "head_norm")
            yield norm("attention.k_norm", self._head_dim, "head_norm")

    def _experts(self) -> ExpertsAnatomy:
        entries = self._entries
        inner = entries.size("moe_intermediate_size", 1408)
        return ExpertsAnatomy(
            n_experts=entries.size("n_routed_experts", 128),
            top_k=entries.size("num_experts_per_tok", 8),
            intermediate_size=inner,
            shared_intermediate_size=inner * entries.get("n_shared_experts", 1),
        )
