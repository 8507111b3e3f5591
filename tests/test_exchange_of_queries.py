"""Queries travel between context ranks while keys and values are projected, and their gradients likewise: the order of
exchanges, products and waits in the attention of every model family."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.distributed as dist

from archon_core.contracts.packed import PackedSequences
from archon_core.contracts.spec import load_target
from archon_core.plugins import registry
from archon_engine.compat import TorchDispatchMode
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import build_module
from archon_engine.nn.ulysses import ContextParallel
from archon_testing.worlds import run_world

MODELS = ("qwen3", "glm4_moe", "gpt_oss", "deepseek_v3")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::linear")
OVERLAPPED = r"P+EP+EWWA*EWP" + r"P+EWA*EEWP+WP+"
"""Products (P) of queries, which leave (E); of keys and values, which leave; arrivals (W), attention (A), its exchange
and product. Backward, gradients of queries travel until the projections of keys and values have theirs."""


class Order(TorchDispatchMode):
    """The order of exchanges (E), of waiting for one (W), of matrix products (P) and of attention (A)."""

    def __init__(self) -> None:
        super().__init__()
        self.order = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        for letter, starts in (
            ("E", ("_c10d_functional::all_to_all_single",)),
            ("W", ("_c10d_functional::wait_tensor",)),
            ("P", PRODUCTS),
            ("A", ("aten::_scaled_dot_product", "aten::bmm")),
        ):
            self.order += letter if name.startswith(starts) else ""
        return func(*args, **(kwargs or {}))


def orders() -> list[str]:
    rank, found = dist.get_rank(), []
    for name in MODELS:
        spec = registry().get("model", name)
        hf_config = load_hf_config(load_target(spec.tiny_config)())
        module = build_module(spec, spec.load().arguments.from_hf_config(hf_config, critic=False)).double()
        attention = module.layers["0"].attention
        for parameter in attention.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        packed = PackedSequences.from_lengths((5, 3)).cut(ContextParallel(dist.group.WORLD, rank, 2))
        x = torch.randn(4, module.embed.weight.shape[1], dtype=torch.float64, requires_grad=True)
        rotation = module.rotary(packed, x.dtype)
        with Order() as seen:
            attention(x, rotation, packed).sum().backward()
        found.append(seen.order)
    return found


@pytest.mark.slow
def test_queries_travel_while_keys_and_values_are_projected() -> None:
    for found in run_world(orders, 2):
        for name, order in zip(MODELS, found, strict=True):
            assert re.fullmatch(OVERLAPPED, order), (name, order)
