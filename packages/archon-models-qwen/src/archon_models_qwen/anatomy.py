"""The anatomy of Qwen2, Qwen3 and Qwen3-MoE, read from the entries of a ``config.json``. Imports neither torch nor
transformers.

Absent entries have the defaults of transformers' configuration classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from archon_core.errors import ModelError
from archon_core.models.anatomy import AttentionAnatomy, ExpertsAnatomy, LayerAnatomy, ModelAnatomy, WeightShape
from archon_core.models.parallel_plan import HeadCounts


def anatomy(entries: Mapping[str, Any], *, critic: bool = False) -> ModelAnatomy:
    """The anatomy of the model that a ``config.json`` describes.

    Raises:
        ModelError: an entry that its size depends on is missing, or is no positive number.
    """
    return _Reader(entries, critic=critic).model()


class _Reader:
    def __init__(self, entries: Mapping[str, Any], *, critic: bool) -> None:
        self._entries = entries
        self._critic = critic
        self._type = str(entries.get("model_type"))
        self._hidden = self._size("hidden_size")
        n_heads = self._size("num_attention_heads")
        self._heads = HeadCounts(n_heads, self._size("num_key_value_heads", n_heads))
        # transformers gives Qwen3 heads of 128 whatever the hidden size, and Qwen2 none of their own.
        default = 128 if self._type == "qwen3" else self._hidden // n_heads
        self._head_dim = self._size("head_dim", default)

    def model(self) -> ModelAnatomy:
        hidden, vocabulary = self._hidden, self._size("vocab_size")
        tied = bool(self._entries.get("tie_word_embeddings", False)) and not self._critic
        last = [WeightShape("norm.weight", (hidden,), "sequence")]
        if self._critic:
            last.append(WeightShape("head.weight", (1, hidden), "sequence"))
        elif not tied:
            last.append(WeightShape("head.weight", (vocabulary, hidden), "vocabulary", 0))
        return ModelAnatomy(
            hidden_size=hidden,
            vocab_size=vocabulary,
            embed=(WeightShape("embed.weight", (vocabulary, hidden), "vocabulary", 0),),
            layers=tuple(self._layer(number) for number in range(self._size("num_hidden_layers"))),
            last=tuple(last),
            tied=tied,
            critic=self._critic,
        )

    def _layer(self, number: int) -> LayerAnatomy:
        experts = self._experts() if self._is_sparse(number) else None
        intermediate = 0 if experts else self._size("intermediate_size")
        feed_forward = self._expert_weights(experts) if experts else self._mlp_weights(intermediate)
        return LayerAnatomy(
            weights=(*self._attention_weights(), *feed_forward, *self._norm_weights()),
            attention=AttentionAnatomy(
                heads=self._heads,
                head_dim=self._head_dim,
                value_dim=self._head_dim,
                window=self._window(number),
                head_norms=self._type != "qwen2",
            ),
            intermediate_size=intermediate,
            experts=experts,
        )

    def _attention_weights(self) -> Iterator[WeightShape]:
        queries, keys = self._heads.query * self._head_dim, self._heads.key_value * self._head_dim
        is_qwen2 = self._type == "qwen2"
        has_bias = is_qwen2 or bool(self._entries.get("attention_bias", False))
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield WeightShape(f"attention.{name}.weight", (rows, self._hidden), "column", 0)
            if has_bias:
                yield WeightShape(f"attention.{name}.bias", (rows,), "column", 0)
        yield WeightShape("attention.o_proj.weight", (self._hidden, queries), "row", 1)
        if has_bias and not is_qwen2:
            yield WeightShape("attention.o_proj.bias", (self._hidden,), "row")
        if not is_qwen2:
            yield WeightShape("attention.q_norm.weight", (self._head_dim,), "head_norm")
            yield WeightShape("attention.k_norm.weight", (self._head_dim,), "head_norm")

    def _mlp_weights(self, intermediate: int) -> Iterator[WeightShape]:
        yield WeightShape("mlp.gate_proj.weight", (intermediate, self._hidden), "column", 0)
        yield WeightShape("mlp.up_proj.weight", (intermediate, self._hidden), "column", 0)
        yield WeightShape("mlp.down_proj.weight", (self._hidden, intermediate), "row", 1)

    def _expert_weights(self, experts: ExpertsAnatomy) -> Iterator[WeightShape]:
        number, inner = experts.n_experts, experts.intermediate_size
        yield WeightShape("moe.router.weight", (number, self._hidden), "sequence")
        yield WeightShape("moe.experts.gate_proj", (number, inner, self._hidden), "expert", 1)
        yield WeightShape("moe.experts.up_proj", (number, inner, self._hidden), "expert", 1)
        yield WeightShape("moe.experts.down_proj", (number, self._hidden, inner), "expert", 2)

    def _norm_weights(self) -> Iterator[WeightShape]:
        for name in ("attention_norm", "mlp_norm"):
            yield WeightShape(f"{name}.weight", (self._hidden,), "sequence")

    def _experts(self) -> ExpertsAnatomy:
        return ExpertsAnatomy(
            n_experts=self._size("num_experts"),
            top_k=self._size("num_experts_per_tok"),
            intermediate_size=self._size("moe_intermediate_size"),
        )

    def _is_sparse(self, number: int) -> bool:
        if self._type != "qwen3_moe":
            return False
        dense = self._entries.get("mlp_only_layers") or ()
        return number not in dense and (number + 1) % self._size("decoder_sparse_step", 1) == 0

    def _window(self, number: int) -> int | None:
        if not self._entries.get("use_sliding_window"):
            return None
        window = self._size("sliding_window", 4096)
        if self._type == "qwen3_moe":
            return window
        kinds = self._entries.get("layer_types")
        if kinds:
            return window if kinds[number] == "sliding_attention" else None
        return window if number >= self._size("max_window_layers", 28) else None

    def _size(self, name: str, default: int | None = None) -> int:
        value = self._entries.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ModelError(
                f"{self._type} configuration: {name}: found {value!r}; allowed are integers from 1; set it"
            )
        return value
