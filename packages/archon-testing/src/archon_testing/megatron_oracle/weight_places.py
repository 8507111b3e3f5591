"""Where the parts of Megatron's parameters lie in the tensors of a Hugging Face checkpoint.

The checkpoint is what a model's weight map exports, so these places join both engines: weights are read from it, and
gradients are compared under its names.

Megatron fuses projections. ``linear_qkv`` holds, for each key head, the query heads of its group, then the key head
and the value head; ``linear_fc1`` the gate's rows, then the rows of the up projection. Tensor ranks hold consecutive
groups, and consecutive rows of gate and up projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from archon_core.models.box import Box
from archon_testing.megatron_oracle.architecture import MegatronSizes


@dataclass(frozen=True)
class Place:
    """A part of a parameter.

    Attributes:
        name: of a tensor of the checkpoint.
        box: the part in that tensor.
        row: first row of the part in the parameter; it has as many rows as the box, and all columns.
    """

    name: str
    box: Box
    row: int = 0

    def part(self, tensor: Tensor) -> Tensor:
        """The view of the part in the parameter, or in its gradient."""
        return tensor[self.row : self.row + self.box.shape[0]]


@dataclass(frozen=True)
class HeldParameters:
    """The place of a Megatron rank in the model.

    Attributes:
        tensor_rank: among tensor ranks.
        first_expert: number of the rank's first expert.
        head_dim: size of a head.
        queries_per_group: query heads of a key head.
        tied: whether the head is the embedding.
        layers: for each of the rank's layers, its number in the model.
    """

    tensor_rank: int
    first_expert: int
    head_dim: int
    queries_per_group: int
    tied: bool
    layers: Mapping[int, int]

    def places(self, name: str, parameter: nn.Parameter) -> list[Place]:
        """The parts of a parameter by its name in Megatron's ``GPTModel``."""
        shape = tuple(parameter.shape)
        if name == "embedding.word_embeddings.weight":
            return [self._rows("model.embed_tokens.weight", shape)]
        if name == "output_layer.weight":
            return [self._rows("model.embed_tokens.weight" if self.tied else "lm_head.weight", shape)]
        if name == "decoder.final_layernorm.weight":
            return [_whole("model.norm.weight", shape)]
        number, _, rest = name.removeprefix("decoder.layers.").partition(".")
        return self._of_layer(f"model.layers.{self.layers[int(number)]}", rest, shape)

    def _of_layer(self, layer: str, name: str, shape: tuple[int, ...]) -> list[Place]:
        if name in _SAME:
            return [_whole(f"{layer}.{_SAME[name]}", shape)]
        block, _, kind = name.rpartition(".")
        if block == "self_attention.linear_qkv":
            return list(self._heads(f"{layer}.self_attn", kind, shape))
        if name == "self_attention.linear_proj.weight":
            return [self._columns(f"{layer}.self_attn.o_proj.weight", shape)]
        before, _, expert = block.rpartition(".linear_fc")[0].partition(".experts.local_experts.")
        mlp = f"{layer}.mlp.experts.{self.first_expert + int(expert)}" if expert else f"{layer}.{before}"
        # Experts are whole, whatever the number of tensor ranks.
        rank = 0 if expert else self.tensor_rank
        if block.endswith("linear_fc2"):
            return [self._columns(f"{mlp}.down_proj.weight", shape, rank)]
        half = shape[0] // 2
        return [
            self._rows(f"{mlp}.{projection}.weight", (half, *shape[1:]), rank, row=row)
            for projection, row in (("gate_proj", 0), ("up_proj", half))
        ]

    def _heads(self, attention: str, kind: str, shape: tuple[int, ...]) -> Iterator[Place]:
        size, queries = self.head_dim, self.queries_per_group
        groups = shape[0] // ((queries + 2) * size)
        for own in range(groups):
            row, group = own * (queries + 2) * size, self.tensor_rank * groups + own
            for projection, heads in (("q_proj", queries), ("k_proj", 1), ("v_proj", 1)):
                start, extent = (group * heads * size, *(0 for _ in shape[1:])), (heads * size, *shape[1:])
                yield Place(f"{attention}.{projection}.{kind}", Box(start, extent), row)
                row += heads * size

    def _rows(self, name: str, shape: tuple[int, ...], rank: int | None = None, *, row: int = 0) -> Place:
        """A part whose tensor is cut along its first dim."""
        rank = self.tensor_rank if rank is None else rank
        return Place(name, Box((rank * shape[0], *(0 for _ in shape[1:])), shape), row)

    def _columns(self, name: str, shape: tuple[int, ...], rank: int | None = None) -> Place:
        """A part whose tensor is cut along its second dim."""
        rank = self.tensor_rank if rank is None else rank
        return Place(name, Box((0, rank * shape[1]), shape))


_SAME = {
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "mlp.router.weight": "mlp.gate.weight",
}
"""Parameters of a layer that both sides hold in the same form, whole on every tensor rank."""


def _whole(name: str, shape: tuple[int, ...]) -> Place:
    return Place(name, Box.whole(shape))


def held_by(model: Any, sizes: MegatronSizes) -> HeldParameters:
    """The place of this process's ``GPTModel`` in the whole model."""
    from megatron.core import parallel_state

    config = model.config
    experts = (config.num_moe_experts or 0) // sizes.expert
    return HeldParameters(
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        first_expert=parallel_state.get_expert_model_parallel_rank() * experts,
        head_dim=config.kv_channels,
        queries_per_group=config.num_attention_heads // config.num_query_groups,
        tied=model.share_embeddings_and_output_weights,
        layers={place: layer.layer_number - 1 for place, layer in enumerate(model.decoder.layers)},
    )
