"""transformers' attention interface, answered by ``archon_engine.nn.attention``: backends, windows, caches and context
parallelism are those of every other model.

What a call needs of the pack comes with it, as the keyword argument ``packed`` that transformers' modules hand down to
attention; nothing is kept on a module, so recomputing a block needs nothing else than its arguments.

Legend: T tokens, Hq query heads, Hkv key and value heads, D head dimension.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_core.errors import ModelError
from archon_engine.nn.attention import PackedAttention
from archon_engine.nn.tensor_parallel import TensorParallel

IMPLEMENTATION = "archon"
"""Under this name transformers finds ``attend``; without a mask function, so that it makes no masks."""

CORE_ATTENTION = "packed_attention"
"""The submodule of transformers' attention that computes. It has no weights, so it adds no name to checkpoints."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    packed: PackedSequences | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An ``AttentionInterface`` function.

    Args:
        module: transformers' attention, whose ``packed_attention`` was made when the model was examined.
        query: [1, Hq, T, D], rotated.
        key: [1, Hkv, T, D].
        value: likewise.
        attention_mask: none is made for this implementation. Where layers hand nothing else down, what ``packed`` is.
        packed: where the sequences lie.
        options: the attention options of the traced run.

    Returns:
        [1, T, Hq, D], of this tensor rank's heads where there are several; and no weights.
    """
    core: SizedAttention = getattr(module, CORE_ATTENTION)
    scale = core.settings.scale
    if packed is None:
        packed, attention_mask = attention_mask, None
    assert isinstance(packed, PackedSequences), "the model was examined, so it hands this down"
    if attention_mask is not None or options.get("scaling", scale) != scale:
        raise ModelError(
            f"{type(module).__name__}: found a mask, or a scale other than {scale:.4g} with which the model was "
            "examined; attention that changes from call to call cannot be run by archon-models-hf"
        )
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    parallel: TensorParallel | None = getattr(module, "parallel", None)
    if parallel is not None:
        q = own_heads(q, core.n_heads, parallel)
        if not core.gets_own_key_heads:
            k, v = (own_heads(x, core.n_kv_heads, parallel) for x in (k, v))
    return core(q, k, v, packed).unsqueeze(0), None


class SizedAttention(PackedAttention):
    """``PackedAttention`` that knows how many heads the whole model has.

    Attributes:
        n_heads: query heads.
        n_kv_heads: key and value heads.
        gets_own_key_heads: whether a tensor rank is given the key and value heads of its queries and no others: the
            projections exchange them, so that their number does not tell whether these are all.
    """

    def __init__(
        self,
        layer: str,
        settings: AttentionSettings,
        *,
        n_heads: int,
        n_kv_heads: int,
        gets_own_key_heads: bool = False,
    ) -> None:
        super().__init__(layer, settings)
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.gets_own_key_heads = gets_own_key_heads


def own_heads(x: Tensor, n_heads: int, parallel: TensorParallel) -> Tensor:
    """This tensor rank's heads of ``x`` [T, H, D], which has those alone, or all of them where a norm over whole
    projections needed all."""
    return x if x.shape[1] != n_heads else x.chunk(parallel.size, 1)[parallel.rank]


def give_packed_as_mask(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A forward pre-hook for layers that hand down their mask to attention and not their keyword arguments."""
    return args, {**kwargs, "attention_mask": kwargs["packed"]}


def register() -> None:
    """Make ``attend`` known to transformers. Doing it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, attend)
