"""The anatomy of Qwen3.5, dense or with experts, read from the entries of a ``config.json``. Imports neither torch nor
transformers.

Of a composite configuration, the entries of the language model count. Absent entries have the defaults of transformers'
configuration classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from archon_core.models.anatomy import (
    AttentionAnatomy,
    DeltaNetAnatomy,
    ExpertsAnatomy,
    LayerAnatomy,
    ModelAnatomy,
    WeightShape,
)
from archon_core.models.decoder_anatomy import Entries, decoder, decoder_layer, linear, norm
from archon_core.models.parallel_plan import HeadCounts


def anatomy(entries: Mapping[str, Any], *, critic: bool = False) -> ModelAnatomy:
    """The anatomy of the language model that a ``config.json`` describes.

    Raises:
        ModelError: an entry that its size depends on is missing, or is not a positive integer.
    """
    return _Reader(Entries(entries.get("text_config") or entries)).model(critic=critic)


class _Reader:
    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._has_experts = "moe" in entries.model_type
        self._hidden = entries.size("hidden_size")
        self._head_dim = entries.size("head_dim", 256)

    def model(self, *, critic: bool) -> ModelAnatomy:
        return decoder(
            self._hidden,
            self._entries.size("vocab_size"),
            tuple(self._layer(number) for number in range(self._entries.size("num_hidden_layers"))),
            tied=self._entries.flag("tie_word_embeddings"),
            critic=critic,
        )

    def _layer(self, number: int) -> LayerAnatomy:
        experts = self._experts() if self._has_experts else None
        mixer = self._delta() if self._is_linear(number) else self._attention()
        return decoder_layer(
            self._hidden,
            self._delta_weights(mixer) if mixer.delta else self._attention_weights(mixer),
            mixer,
            experts=experts,
            intermediate=0 if experts else self._entries.size("intermediate_size"),
        )

    def _is_linear(self, number: int) -> bool:
        kinds = self._entries.get("layer_types")
        if kinds:
            return kinds[number] == "linear_attention"
        return (number + 1) % self._entries.size("full_attention_interval", 4) != 0

    def _attention(self) -> AttentionAnatomy:
        heads = HeadCounts(self._entries.size("num_attention_heads"), self._entries.size("num_key_value_heads"))
        rope = self._entries.get("rope_parameters") or {}
        rotated = int(
            self._head_dim * rope.get("partial_rotary_factor", self._entries.get("partial_rotary_factor", 0.25))
        )
        return AttentionAnatomy(
            heads=heads,
            head_dim=self._head_dim,
            value_dim=self._head_dim,
            head_norms=True,
            rotated_dim=rotated,
            output_gate=True,
        )

    def _delta(self) -> AttentionAnatomy:
        entries = self._entries
        return AttentionAnatomy(
            heads=HeadCounts(entries.size("linear_num_value_heads", 32), entries.size("linear_num_key_heads", 16)),
            head_dim=entries.size("linear_key_head_dim", 128),
            value_dim=entries.size("linear_value_head_dim", 128),
            rotated_dim=0,
            delta=DeltaNetAnatomy(entries.size("linear_conv_kernel_dim", 4)),
        )

    def _attention_weights(self, attention: AttentionAnatomy) -> Iterator[WeightShape]:
        queries, keys = (n * self._head_dim for n in (attention.heads.query, attention.heads.key_value))
        has_bias = self._entries.flag("attention_bias")
        # Every query has a gate beside it.
        for name, outputs in (("q_proj", 2 * queries), ("k_proj", keys), ("v_proj", keys)):
            yield from linear(f"attention.{name}", outputs, self._hidden, "column", bias=has_bias)
        yield from linear("attention.o_proj", self._hidden, queries, "row", bias=has_bias)
        yield norm("attention.q_norm", self._head_dim, "head_norm")
        yield norm("attention.k_norm", self._head_dim, "head_norm")

    def _delta_weights(self, mixer: AttentionAnatomy) -> Iterator[WeightShape]:
        assert mixer.delta is not None, "a layer of Gated DeltaNet"
        n_heads = mixer.heads.query
        keys, values = mixer.heads.key_value * mixer.head_dim, n_heads * mixer.value_dim
        for name, outputs in (
            ("query_proj", keys),
            ("key_proj", keys),
            ("value_proj", values),
            ("output_gate_proj", values),
            ("beta_proj", n_heads),
            ("decay_proj", n_heads),
        ):
            yield from linear(f"delta.{name}", outputs, self._hidden, "column")
        for name, features in (("query_filters", keys), ("key_filters", keys), ("value_filters", values)):
            yield WeightShape(f"delta.{name}.weight", (features, 1, mixer.delta.filter_length), "column", 0)
        for vector in ("bias", "weight"):
            yield WeightShape(f"delta.decay.{vector}", (n_heads,), "column", 0)
        yield norm("delta.norm", mixer.value_dim, "head_norm")
        yield from linear("delta.out_proj", self._hidden, values, "row")

    def _experts(self) -> ExpertsAnatomy:
        return ExpertsAnatomy(
            n_experts=self._entries.size("num_experts", 256),
            top_k=self._entries.size("num_experts_per_tok", 8),
            intermediate_size=self._entries.size("moe_intermediate_size", 512),
            shared_intermediate_size=self._entries.size("shared_expert_intermediate_size", 512),
            shared_gate=True,
        )
