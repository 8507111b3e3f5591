"""Runs a model under torch's memory tracker: shapes and memory without values, on a fake process group.

``FSDPMemTracker`` files memory under kinds. Activations are the kinds ``ACT`` (made in forward passes and recomputed)
and ``TEMP`` (made in backward passes), less the gradients of weights, which are ``TEMP`` until FSDP2 reduces them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker, _FSDPRefType  # private; for tests only
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.layout.dims import ParallelDims
from archon_engine import compat
from archon_engine.assembly.blocks import prepare_blocks
from archon_engine.mesh import build_meshes
from archon_engine.models.initialize import materialize_empty
from archon_engine.parallel.fsdp import apply_fsdp
from archon_engine.parallel.tensor import apply_tensor_parallel
from archon_models_qwen.arguments import QwenArguments
from archon_models_qwen.decoder import QwenDecoder
from archon_models_qwen.moe_arguments import QwenMoEArguments
from archon_models_qwen.moe_decoder import QwenMoEDecoder
from archon_models_qwen.parallel_plan import moe_parallel_plan, parallel_plan
from archon_moe.builder import MoEBlocks


class ActivationTracker(FSDPMemTracker):
    """Records the largest sum of activations over time.

    Attributes:
        most: bytes.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(module)
        self.most = 0
        self._weights: list[torch.nn.Parameter] = []
        self.log: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs or {})
        of_kind = self._curr_mem_snap.get(torch.device("cpu"), {})
        act, temp = of_kind.get(_FSDPRefType.ACT, 0), of_kind.get(_FSDPRefType.TEMP, 0)
        wg = self._weight_gradients() if temp else 0
        self.log.append(
            (
                str(func),
                self._mod_tracker.is_bw,
                act,
                temp,
                wg,
                [tuple(t.shape) for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)],
            )
        )
        self.most = max(self.most, act + temp - wg)
        return result

    def _weight_gradients(self) -> int:
        if not self._weights:
            self._weights = compat.whole_parameters(self._root_mod)
        total = 0
        for weight in self._weights:
            gradient = weight.grad
            if gradient is not None:
                local = getattr(gradient, "_local_tensor", gradient)
                winfo, _ = self._WINFO.get(local.untyped_storage(), (None, None))
                if winfo is not None and winfo.reftype in (_FSDPRefType.ACT, _FSDPRefType.TEMP):
                    total += winfo.mem_consumed
        return total


@contextmanager
def fake_ranks(n: int) -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=n, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def largest_activations(
    entries: Mapping[str, Any],
    dims: ParallelDims,
    tokens: int,
    sequence: int,
    *,
    ac_mode="none",
    every=None,
    dtype=torch.bfloat16,
    reshard=True,
    meshes=None,
):
    is_moe = entries["model_type"] == "qwen3_moe"
    config = AutoConfig.for_model(**entries)
    meshes = meshes or build_meshes(dims, "cpu", experts=is_moe)
    with torch.device("meta"):
        if is_moe:
            arguments = QwenMoEArguments.from_hf_config(config, critic=False)
            builder = MoEBlocks(SimpleNamespace(moe_grouped_gemm=True))
            module = QwenMoEDecoder(arguments, None, builder)
            plan = moe_parallel_plan(arguments)
        else:
            arguments = QwenArguments.from_hf_config(config, critic=False)
            module = QwenDecoder(arguments)
            plan = parallel_plan(arguments)
    if meshes.tp is not None:
        apply_tensor_parallel(module, plan, meshes.tp)
    if is_moe:
        for part in module.modules():
            if type(part).__name__ == "MoEBlock":
                builder.shard(part, meshes.experts.place)
    effective = SimpleNamespace(ac_mode=ac_mode, ac_every=every, compile=False, ac_debug=False)
    prepare_blocks(module, plan, effective, role="actor")
    apply_fsdp(
        module,
        plan,
        meshes.fsdp,
        compute_dtype=dtype,
        reduce_dtype=torch.float32,
        reshard_after_forward=reshard,
        expert_mesh=meshes.experts.fsdp if is_moe else None,
    )
    with compat.without_storage():
        materialize_empty(module, "cpu")
        lengths = (sequence,) * (tokens // sequence)
        targets = torch.zeros(tokens, dtype=torch.int64)
        packed = PackedSequences.from_lengths(lengths, head=HeadInputs(("logprobs",), targets))
        ids = torch.zeros(tokens, dtype=torch.int64)
        if meshes.context is not None:
            ids, packed = meshes.context.local_tokens(ids), packed.cut(meshes.context)
        tracker = ActivationTracker(module)
        tracker.track_inputs((ids, targets))
        with tracker:
            out = module(ids, packed)["logprobs"].sum()
            out.backward()
    return tracker
