"""The sizes of a model that time depends on, equal layers once. Each model is summarised once per process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from archon_core.models.anatomy import LayerAnatomy, ModelAnatomy, WeightShape

_ROUTER = "router.weight"


@dataclass(frozen=True)
class LayerSizes:
    """Numbers of elements of one layer's weights, and its other sizes.

    Attributes:
        sharded: of matrices and vectors that tensor ranks shard.
        replicated: of matrices and vectors that every tensor rank holds whole.
        experts: of all experts.
        products: of matrices that multiply every token, the router's left out.
        repeated: the part of ``products`` by which every tensor rank multiplies the tokens of all of them.
        router: of the router's matrix; 0 without experts.
        pair: of the matrices of one expert, which multiply a pair of a token and that expert.
        last_product: of the matrix that multiplies last, if nothing after it keeps its result for backward; else 0.
        anatomy: of the layer.
    """

    sharded: int
    replicated: int
    experts: int
    products: int
    repeated: int
    router: int
    pair: int
    last_product: int
    anatomy: LayerAnatomy

    @property
    def dense(self) -> int:
        """Elements of all weights but experts."""
        return self.sharded + self.replicated


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model.

    Attributes:
        kinds: the different layers.
        kind_of: for each layer, the index of its kind.
        embed: elements of the weights before the layers.
        last_sharded: elements of the weights after the layers that tensor ranks shard.
        last_replicated: elements of the other weights after them.
        head: elements of the matrix of the head; that of the embedding if it is tied.
    """

    kinds: tuple[LayerSizes, ...]
    kind_of: tuple[int, ...]
    embed: int
    last_sharded: int
    last_replicated: int
    head: int


class Same:
    """An anatomy as the key of a cache. It compares by identity: hashing an anatomy of many layers takes longer than a
    plan."""

    def __init__(self, anatomy: ModelAnatomy) -> None:
        self.anatomy = anatomy

    def __hash__(self) -> int:
        return id(self.anatomy)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.anatomy is other.anatomy


def sizes_of(anatomy: ModelAnatomy) -> ModelSizes:
    """The sizes of ``anatomy``."""
    return _sizes(Same(anatomy))


@lru_cache(maxsize=64)
def _sizes(same: Same) -> ModelSizes:
    anatomy = same.anatomy
    last_sharded = sum(weight.size for weight in anatomy.last if weight.tensor_dim is not None)
    last_matrices = sum(weight.size for weight in anatomy.last if len(weight.shape) >= 2)
    return ModelSizes(
        kinds=tuple(map(_layer, anatomy.kinds)),
        kind_of=anatomy.kind_of,
        embed=sum(weight.size for weight in anatomy.embed),
        last_sharded=last_sharded,
        last_replicated=sum(weight.size for weight in anatomy.last) - last_sharded,
        head=anatomy.vocab_size * anatomy.hidden_size if anatomy.tied else last_matrices,
    )


def _layer(layer: LayerAnatomy) -> LayerSizes:
    dense = [weight for weight in layer.weights if weight.role != "expert"]
    experts = sum(weight.size for weight in layer.weights if weight.role == "expert")
    matrices = [weight for weight in dense if len(weight.shape) >= 2]
    router = sum(weight.size for weight in matrices if weight.name.endswith(_ROUTER))
    sharded = sum(weight.size for weight in dense if weight.tensor_dim is not None)
    return LayerSizes(
        sharded=sharded,
        replicated=sum(weight.size for weight in dense) - sharded,
        experts=experts,
        products=sum(weight.size for weight in matrices) - router,
        repeated=sum(weight.size for weight in matrices if weight.role == "replicated"),
        router=router,
        pair=experts // layer.experts.n_experts if layer.experts else 0,
        last_product=_last_product(layer, matrices),
        anatomy=layer,
    )


def _last_product(layer: LayerAnatomy, matrices: list[WeightShape]) -> int:
    """Norms behind the block, a shared expert's gate and routed experts keep the last product's result. A shared expert
    without a gate comes after the routed ones."""
    if layer.norms != 2 or any("shared_gate" in weight.name for weight in matrices):
        return 0
    if layer.experts is None:
        last = [weight.size for weight in matrices if weight.role == "row"]
    else:
        last = [weight.size for weight in matrices if weight.name == "moe.shared.down_proj.weight"]
    return last[-1] if last else 0
