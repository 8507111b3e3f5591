"""The sizes at which a device is measured: those of a model, or defaults."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.models.anatomy import LayerAnatomy, ModelAnatomy


@dataclass(frozen=True)
class Sizes:
    """The sizes at which products and attention are measured.

    Attributes:
        tokens: of a micro-batch on one rank.
        sequence: tokens of a sequence.
        matrices: rows and columns of the matrices of a block.
        experts: number of local experts, and rows and columns of one; ``None`` without experts.
        heads: query heads, key heads, and the size of a head.
    """

    tokens: int = 8192
    sequence: int = 4096
    matrices: tuple[tuple[int, int], ...] = ((4096, 4096), (12288, 4096), (4096, 12288))
    experts: tuple[int, int, int] | None = (8, 1536, 4096)
    heads: tuple[int, int, int] = (32, 8, 128)

    @classmethod
    def of(cls, anatomy: ModelAnatomy, *, tokens: int, sequence: int, tensor: int = 1, places: int = 1) -> Sizes:
        """Those of a model.

        Args:
            anatomy: of the model.
            tokens: of a micro-batch on one rank.
            sequence: mean tokens of a sequence.
            tensor: ranks that share the matrices and the heads.
            places: ranks that share the experts.
        """
        layers = [*anatomy.kinds]
        sparse = next((layer for layer in layers if layer.experts is not None), None)
        attention = anatomy.attention
        heads = attention.heads.query // tensor, max(1, attention.heads.key_value // tensor), attention.head_dim
        return cls(
            tokens=tokens,
            sequence=min(sequence, tokens),
            matrices=tuple(dict.fromkeys(shape for layer in layers for shape in _matrices(layer, tensor))),
            experts=None if sparse is None else _expert_sizes(sparse, anatomy.hidden_size, places),
            heads=heads,
        )


def _matrices(layer: LayerAnatomy, tensor: int) -> list[tuple[int, int]]:
    shapes = []
    for weight in layer.weights:
        if len(weight.shape) == 2 and weight.role != "expert" and weight.tensor_dim is not None:
            shape = list(weight.shape)
            shape[weight.tensor_dim] //= tensor
            shapes.append((shape[0], shape[1]))
    return shapes


def _expert_sizes(layer: LayerAnatomy, hidden: int, places: int) -> tuple[int, int, int]:
    assert layer.experts is not None
    return max(1, layer.experts.n_experts // places), layer.experts.intermediate_size, hidden


SMALL = Sizes(tokens=512, sequence=256, matrices=((256, 256), (768, 256)), experts=(4, 256, 256), heads=(8, 4, 32))
"""Sizes that a CPU core computes in milliseconds."""
