"""The anatomy of Qwen2, Qwen3 and Qwen3-MoE, read from the entries of a ``config.json``. Imports neither torch nor
transformers.

Absent entries have the defaults of transformers' configuration classes.
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
        self._type = entries.model_type
        self._hidden = entries.size("hidden_size")
        n_heads = entries.size("num_attention_heads")
        self._heads = HeadCounts(n_heads, entries.size("num_key_value_heads", n_heads))
        # transformers gives Qwen3 heads of 128 whatever the hidden size, and Qwen2 none of their own.
        default = 128 if self._type == "qwen3" else self._hidden // n_heads
        self._head_dim = entries.size("head_dim", default)

    def model(self, *, critic: bool) -> ModelAnatomy:
        return decoder(
            self._hidden,
            self._entries.size("vocab_size"),
            tuple(self._layer(number) for number in range(self._entries.size("num_hidden_layers"))),
            tied=self._entries.flag("tie_word_embeddings"),
            critic=critic,
        )

    def _layer(self, number: int) -> LayerAnatomy:
        experts = self._experts() if self._is_sparse(number) else None
        return decoder_layer(
            self._hidden,
            self._attention_weights(),
            AttentionAnatomy(
                heads=self._heads,
                head_dim=self._head_dim,
                value_dim=self._head_dim,
                window=self._window(number),
                head_norms=self._type != "qwen2",
            ),
            experts=experts,
            intermediate=0 if experts else self._entries.size("intermediate_size"),
        )

    def _attention_weights(self) -> Iterator[WeightShape]:
        queries, keys = self._heads.query * self._head_dim, self._heads.key_value * self._head_dim
        is_qwen2 = self._type == "qwen2"
        has_bias = is_qwen2 or self._entries.flag("attention_bias")
        for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from linear(f"attention.{name}", outputs, self._hidden, "column", bias=has_bias)
        yield from linear("attention.o_proj", self._hidden, queries, "row", bias=has_bias and not is_qwen2)
        if not is_qwen2:
            yield norm("attention.q_norm", self._head_dim, "head_norm")
            yield norm("attention.k_norm", self._head_dim, "head_norm")

    def _experts(self) -> ExpertsAnatomy:
        return ExpertsAnatomy(
            n_experts=self._entries.size("num_experts"),
            top_k=self._entries.size("num_experts_per_tok"),
            intermediate_size=self._entries.size("moe_intermediate_size"),
        )

    def _is_sparse(self, number: int) -> bool:
        if self._type != "qwen3_moe":
            return False
        dense = self._entries.get("mlp_only_layers") or ()
        return number not in dense and (number + 1) % self._entries.size("decoder_sparse_step", 1) == 0

    def _window(self, number: int) -> int | None:
        if not self._entries.flag("use_sliding_window"):
            return None
        window = self._entries.size("sliding_window", 4096)
        if self._type == "qwen3_moe":
            return window
        kinds = self._entries.get("layer_types")
        if kinds:
            return window if kinds[number] == "sliding_attention" else None
        return window if number >= self._entries.size("max_window_layers", 28) else None
