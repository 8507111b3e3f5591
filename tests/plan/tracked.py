"""Runs models under torch's memory tracker, with shapes but without values, on one rank of a fake process group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

# Private: torch has no public memory tracker.
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker, _FSDPRefType, _FSDPState
from transformers import AutoConfig

from archon_core import registry
from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.models.parallel_plan import ParallelPlan
from archon_engine import compat
from archon_engine.assembly.blocks import prepare_blocks
from archon_engine.data.prefix_tree import build_prefix_tree
from archon_engine.data.tree_micro_batch import pack_tree
from archon_engine.mesh import Meshes, build_meshes
from archon_engine.models.initialize import materialize_empty
from archon_engine.parallel.fsdp import apply_fsdp
from archon_engine.parallel.tensor import apply_tensor_parallel
from archon_moe.block import MoEBlock
from archon_moe.builder import MoEBlocks
from archon_plan.routing import distinct_places
from archon_plan.setting import Setting, SharedPrompt, Tokens


class ActivationTracker(FSDPMemTracker):
    """Records the largest sum of activations over time: of what forward passes and recomputation made (``ACT``) and
    what backward passes made (``TEMP``), which includes the gradients of a block's weights until FSDP2 takes them.

    Attributes:
        most: that sum, in bytes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs or {})
        # Buffers of FSDP2's collectives count as ACT or TEMP until these have started.
        if self._fsdp_state not in (_FSDPState.PRE_FW, _FSDPState.PRE_BW, _FSDPState.POST_BW):
            of_kind = self._curr_mem_snap.get(torch.device("cpu"), {})
            self.most = max(self.most, of_kind.get(_FSDPRefType.ACT, 0) + of_kind.get(_FSDPRefType.TEMP, 0))
        return result


def largest_activations(entries: Mapping[str, Any], setting: Setting) -> int:
    """The largest sum of activations in bytes, in one forward and backward pass of the model of ``entries``, the
    content of a ``config.json``, sharded as in ``setting``. Needs ``sharded_ranks.fake_rank``.

    Experts run as ``grouped_mm``, because the loop over experts reads values.
    """
    dims, dtype = setting.dims, torch.bfloat16 if setting.types.compute == 2 else torch.float32
    # Has values, so before the fake mode.
    meshes = build_meshes(dims, "cpu", experts=setting.anatomy.has_experts, context=setting.context)
    module, plan = _sharded(entries, setting, meshes)
    effective = SimpleNamespace(ac_mode=setting.checkpointing, ac_every=setting.every, compile=False, ac_debug=False)
    prepare_blocks(module, plan, effective, role="actor")  # type: ignore[arg-type]
    apply_fsdp(
        module,
        plan,
        meshes.fsdp,
        compute_dtype=dtype,
        reduce_dtype=torch.float32,
        reshard_after_forward=setting.reshards,
        expert_mesh=None if meshes.experts is None else meshes.experts.fsdp,
    )
    with ExitStack() as stack:
        stack.enter_context(compat.without_storage())
        materialize_empty(module, "cpu")
        ids, packed = _batch(setting, meshes)
        tracker = ActivationTracker(module)
        tracker.track_inputs((ids, packed.head.targets if packed.head else None, packed.positions, packed.cu_seqlens))
        if dims.ep * dims.etp > 1:
            stack.enter_context(_balanced_rows(setting))
        with tracker:
            outputs = module(ids, packed)
            next(iter(outputs.values())).sum().backward()
        return tracker.most


def _sharded(entries: Mapping[str, Any], setting: Setting, meshes: Meshes) -> tuple[nn.Module, ParallelPlan]:
    spec = registry().model_for(entries["model_type"])
    model, builder = spec.load(), MoEBlocks(SimpleNamespace(moe_grouped_gemm=True))
    arguments = model.arguments.from_hf_config(AutoConfig.for_model(**entries), critic=setting.anatomy.critic)
    with torch.device("meta"):
        module, plan = model.build(arguments, experts=builder), model.parallel_plan(arguments)
    if meshes.tp is not None:
        apply_tensor_parallel(module, plan, meshes.tp)
    for part in module.modules():
        if isinstance(part, MoEBlock) and meshes.experts is not None:
            builder.shard(part, meshes.experts.place)
    return module, plan


def _batch(setting: Setting, meshes: Meshes) -> tuple[torch.Tensor, PackedSequences]:
    tokens, sequence = setting.tokens.per_micro_batch, setting.tokens.sequence
    if setting.tokens.shared is not None:
        return _tree_batch(setting.tokens, setting.tokens.shared)
    ids = torch.zeros(tokens, dtype=torch.int64)
    head = HeadInputs(("values",) if setting.anatomy.critic else ("logprobs",), torch.zeros_like(ids))
    packed = PackedSequences.from_lengths((sequence,) * (tokens // sequence), head=head)
    if meshes.context is None:
        return ids, packed
    context = meshes.context.deal(packed)
    return context.local_tokens(ids), packed.cut(context)


def _tree_batch(tokens: Tokens, shared: SharedPrompt) -> tuple[torch.Tensor, PackedSequences]:
    """Prompts that are whole in the micro-batch, each with as many samples."""
    samples = round(shared.samples)
    completion = tokens.sequence - shared.tokens
    prompts = tokens.per_micro_batch // (shared.tokens + samples * completion)
    numbers = np.arange(prompts * samples)[:, None]
    keys = np.concatenate(
        [
            np.broadcast_to(numbers // samples, (len(numbers), shared.tokens)),
            np.broadcast_to(len(numbers) + numbers, (len(numbers), completion)),
        ],
        axis=1,
    )
    lengths = [tokens.sequence] * len(numbers)
    tree = build_prefix_tree(keys.reshape(-1), lengths)
    assert tree.n_tokens == tokens.per_micro_batch
    targets = np.flatnonzero(tree.predecessor >= 0)
    with compat.with_storage():
        packed = pack_tree(tree, lengths)
        places = torch.from_numpy(tree.predecessor[targets])
        head = HeadInputs(("logprobs",), torch.zeros_like(places), places=places)
    return torch.zeros(tree.n_tokens, dtype=torch.int64), replace(packed, head=head)


@contextmanager
def _balanced_rows(setting: Setting) -> Iterator[None]:
    """Give ranks the numbers of rows and pairs of a balanced router, which they would read from the device."""
    [experts] = {layer.experts for layer in setting.anatomy.layers if layer.experts is not None}
    ep, tokens = setting.dims.ep, setting.local_tokens
    rows = round(tokens * distinct_places(experts.n_experts, experts.top_k, ep) / ep)
    pairs = tokens * experts.top_k // ep
    original = FakeTensor.tolist

    def tolist(self: FakeTensor) -> Any:
        if self.ndim == 3:  # AllToAllDispatch: [direction, (rows, pairs), rank]
            return [[[rows] * self.shape[2], [pairs] * self.shape[2]]] * 2
        return original(self)

    with patch.object(FakeTensor, "tolist", tolist):
        yield
