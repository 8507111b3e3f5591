"""The anatomy of gpt-oss, read from the entries of a ``config.json``. Imports neither torch nor transformers.

Absent entries have the defaults of transformers' configuration class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from archon_core.models.anatomy import AttentionAnatomy, ExpertsAnatomy, LayerAnatomy, ModelAnatomy, WeightShape
from archon_core.models.decoder_anatomy import Entries, decoder, expert_weights, linear, norm
from archon_core.models.parallel_plan import HeadCounts


def anatomy(entries: Mapping[str, Any], *, critic: bool = False) -> ModelAnatomy:
    """The anatomy of the model that a ``config.json`` describes.

    Raises:
        ModelError: an entry that its size depends on is not a positive integer.
    """
    return _Reader(Entries(entries)).model(critic=critic)


class _Reader:
    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._hidden = entries.size("hidden_size", 2880)
        self._heads = HeadCounts(entries.size("num_attention_heads", 64), entries.size("num_key_value_heads", 8))
        self._head_dim = entries.size("head_dim", 64)

    def model(self, *, critic: bool) -> ModelAnatomy:
        return decoder(
            self._hidden,
            self._entries.size("vocab_size", 201088),
            tuple(self._layer(number) for number in range(self._entries.size("num_hidden_layers", 36))),
            tied=self._entries.flag("tie_word_embeddings"),
            critic=critic,
        )

    def _layer(self, number: int) -> LayerAnatomy:
        experts = ExpertsAnatomy(
            n_experts=self._entries.size("num_local_experts", self._entries.get("num_experts", 128)),
            top_k=self._entries.size("num_experts_per_tok", 4),
            intermediate_size=self._entries.size("intermediate_size", 2880),
            biases=True,
            clamped=True,
        )
        return LayerAnatomy(
            weights=(
                *self._attention_weights(),
                *self._expert_weights(experts),
                norm("attention_norm", self._hidden),
                norm("mlp_norm", self._hidden),
            ),
            attention=AttentionAnatomy(
                heads=self._heads,
                head_dim=self._head_dim,
                value_dim=self._head_dim,
                window=self._window(number),
                sinks=True,
            ),
            experts=experts,
        )

    def _attention_weights(self) -> Iterator[WeightShape]:
        queries, keys = self._heads.query * self._head_dim, self._heads.key_value * self._head_dim
        has_bias = self._entries.flag("attention_bias", True)
        for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from linear(f"attention.{name}", outputs, self._hidden, "column", bias=has_bias)
        yield from linear("attention.o_proj", self._hidden, queries, "row", bias=has_bias)
        yield WeightShape("attention.sinks.weight", (self._heads.query,), "column", 0)

    def _expert_weights(self, experts: ExpertsAnatomy) -> Iterator[WeightShape]:
        number, inner, hidden = experts.n_experts, experts.intermediate_size, self._hidden
        yield from expert_weights(experts, hidden)
        yield WeightShape("moe.router.bias", (number,), "sequence")
        yield WeightShape("moe.experts.gate_bias", (number, inner), "expert", 1)
        yield WeightShape("moe.experts.up_bias", (number, inner), "expert", 1)
        yield WeightShape("moe.experts.down_bias", (number, hidden), "expert", 1)

    def _window(self, number: int) -> int | None:
        kinds = self._entries.get("layer_types")
        slides = kinds[number] == "sliding_attention" if kinds else number % 2 == 0
        return self._entries.size("sliding_window", 128) if slides else None
