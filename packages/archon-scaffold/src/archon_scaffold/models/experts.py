"""Reads expert blocks like those of Mixtral and Qwen3-MoE: names in configurations, in memory and in files."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from archon_core.contracts.moe import MoESettings
from archon_core.contracts.packed import PackedSequences
from archon_engine.nn.swiglu import activation
from archon_scaffold.models.architecture import Experts
from archon_scaffold.models.twin import Twin

IN_MEMORY = frozenset({"gate.weight", "experts.gate_up_proj", "experts.down_proj"})
"""Parameters of an expert block in ``transformers`` 5."""

_NUMBERS = ("num_experts", "num_local_experts")
_SIZES = ("moe_intermediate_size", "intermediate_size")


def read_experts(twin: Twin) -> Experts | None:
    """The expert blocks of a model whose layers have the parameters ``IN_MEMORY``; ``None`` for other names."""
    config, block = twin.config, twin.layers[0].mlp
    n_experts, hidden_and_size = block.experts.gate_up_proj.shape[0], block.experts.down_proj.shape[1:]
    known = twin.entries.keys() | vars(config).keys()
    number = next((name for name in _NUMBERS if name in known and getattr(config, name) == n_experts), None)
    size = next((name for name in _SIZES if name in known and getattr(config, name) == hidden_and_size[1]), None)
    files = _names_in_files(twin, block)
    if number is None or size is None or files is None or not hasattr(config, "num_experts_per_tok"):
        return None
    normalise = "config.norm_topk_prob" if hasattr(config, "norm_topk_prob") else "True"
    return Experts(number, "num_experts_per_tok", size, normalise, *files)


def _names_in_files(twin: Twin, block: nn.Module) -> tuple[str, tuple[str, str, str]] | None:
    """The names under which ``transformers`` saves single experts, found by their values."""
    with tempfile.TemporaryDirectory() as folder:
        twin.module.save_pretrained(folder)
        tensors: dict[str, Tensor] = {}
        for file in Path(folder).glob("*.safetensors"):
            tensors |= load_file(file)
    first = f"{twin.root}layers.0."
    own = {name.removeprefix(first): tensor for name, tensor in tensors.items() if name.startswith(first)}
    gate, up = block.experts.gate_up_proj[1].detach().chunk(2)
    wanted = (block.gate.weight.detach(), gate, up, block.experts.down_proj[1].detach())
    names = [next((name for name, tensor in own.items() if _equal(tensor, part)), None) for part in wanted]
    if None in names:
        return None
    router, *projections = (str(name) for name in names)
    gate_name, up_name, down_name = (re.sub(r"\.1\.", ".{expert}.", name, count=1) for name in projections)
    return router, (gate_name, up_name, down_name)


def _equal(found: Tensor, right: Tensor) -> bool:
    return found.shape == right.shape and torch.equal(found, right)


class PlainExperts:
    """Builds expert blocks without archon-moe, to compare values.

    Every expert computes every token, which is simple but wasteful.
    """

    def build(self, settings: MoESettings, layer: int) -> nn.Module:
        """See ``archon_core.contracts.moe.MoEBuilder``."""
        return _PlainBlock(settings)


class _PlainBlock(nn.Module):
    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        outward = (settings.n_experts, settings.intermediate_size, settings.hidden_size)
        inward = (settings.n_experts, settings.hidden_size, settings.intermediate_size)
        self.settings = settings
        self.router = _holder(weight=(settings.n_experts, settings.hidden_size))
        self.experts = _holder(gate_proj=outward, up_proj=outward, down_proj=inward)
        self.activation = activation(settings.hidden_act)

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor:
        experts: Any = self.experts
        best, chosen = (x @ self.router.weight.T).softmax(-1).topk(self.settings.top_k)
        if self.settings.norm_topk_prob:
            best = best / best.sum(-1, keepdim=True)
        weights = x.new_zeros(x.shape[0], self.settings.n_experts).scatter(-1, chosen, best)
        gate, up = (torch.einsum("th,efh->etf", x, proj) for proj in (experts.gate_proj, experts.up_proj))
        return torch.einsum("etf,ehf,te->th", self.activation(gate) * up, experts.down_proj, weights)


def _holder(**shapes: tuple[int, ...]) -> nn.Module:
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.empty(shape)))
    return module
