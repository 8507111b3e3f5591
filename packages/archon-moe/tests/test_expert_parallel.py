"""Blocks on several ranks against the same block on one: outputs, all gradients, and the bytes sent."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from archon_core.contracts.moe import ClampedGate, ExpertParallel, MoESettings
from archon_core.contracts.packed import PackedSequences
from archon_core.errors import LayoutError
from archon_engine.compat import TorchDispatchMode
from archon_engine.options.archon import ArchonOptions
from archon_moe.block import MoEBlock
from archon_moe.builder import MoEBlocks
from archon_moe.dispatch.traffic import RowSizes, bytes_between, rows_between
from archon_moe.sharding import check_sizes
from archon_testing.worlds import run_world

SETTINGS = MoESettings(
    8,
    16,
    8,
    3,
    norm_topk_prob=True,
    shared_intermediate_size=8,
    shared_gate=True,
    expert_bias=True,
    router_bias=True,
    clamped_gate=ClampedGate(limit=1.0),
)
UNUSED = 5
"""An expert that no token goes to."""
TOKENS = {2: (4, 3), 8: (3, 0, 5, 1, 2, 2, 0, 4)}
"""Ranks -> tokens of each: odd numbers, a single one, none."""
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear")
OVERLAPPED = r"P+EWEEEP+WWWP*EWEWP*EEP+WWP+"
"""Router, counts, tokens in flight, shared expert, arrival, experts, results; backward the same in reverse."""
EXACT = {"rtol": 1e-12, "atol": 1e-13}


class Exchanged(TorchDispatchMode):
    """Bytes that this rank sends to each rank of a group in all-to-alls; and the order of these exchanges (E), of
    waiting for one (W), and of matrix products (P)."""

    def __init__(self, n_ranks: int) -> None:
        super().__init__()
        self.bytes = [0] * n_ranks
        self.calls = 0
        self.order = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.order += "P" if name.startswith(PRODUCTS) else "W" if name == "_c10d_functional::wait_tensor" else ""
        if name.startswith("_c10d_functional::all_to_all_single"):
            self.order += "E"
            x, _, sent = args[:3]
            row = x[:1].numel() * x.element_size() if x.shape[0] else 0
            self.bytes = [total + rows * row for total, rows in zip(self.bytes, sent, strict=True)]
            self.calls += 1
        return func(*args, **(kwargs or {}))


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in MoEBlocks(ArchonOptions()).build(SETTINGS, 0).named_parameters()}
    values = {n: torch.randn(s, generator=generator, dtype=torch.float64) * 0.4 for n, s in shapes.items()}
    values["router.weight"][UNUSED, 0] = -100.0  # against a feature that is 1 for every token
    return values


def inputs(n_ranks: int) -> tuple[Tensor, Tensor]:
    """Tokens of all ranks, and the gradient of the output."""
    generator = torch.Generator().manual_seed(2)
    x, grad = torch.randn(2, sum(TOKENS[n_ranks]), 8, generator=generator, dtype=torch.float64)
    x[:, 0] = 1.0
    return x, grad


def block(place: ExpertParallel | None = None) -> MoEBlock:
    builder = MoEBlocks(ArchonOptions())
    with torch.device("meta"):
        made = builder.build(SETTINGS, 0)
    if place is not None:
        builder.shard(made, place)
    made.to_empty(device="cpu").to(torch.float64)
    for name, value in weights().items():
        parameter = made.get_parameter(name)
        if place is not None and name.startswith("experts."):
            with torch.no_grad():
                parameter.to_local().copy_(part(name, value, place))
        else:
            parameter.data.copy_(value)
    return made


def part(name: str, whole: Tensor, place: ExpertParallel) -> Tensor:
    """This rank's shard of an expert tensor, by plain slicing."""
    p, q = divmod(dist.get_rank(place.group), place.etp)
    dim = 2 if name.endswith("down_proj") else 1
    return whole.chunk(place.ep, 0)[p].chunk(place.etp, dim)[q]


def run(made: MoEBlock, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x = x.clone().requires_grad_()
    y = made(x, PackedSequences.from_lengths((x.shape[0],)))
    y.backward(grad)
    return y.detach(), x.grad, {name: p.grad for name, p in made.named_parameters()}


def compare_with_one_process(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """For each (ep, etp), the bytes this rank sent and the expected bytes; wrong numbers raise."""
    n_ranks, rank = dist.get_world_size(), dist.get_rank()
    x, grad = inputs(n_ranks)
    y, dx, gradients = run(block(), x, grad)
    own = slice(sum(TOKENS[n_ranks][:rank]), sum(TOKENS[n_ranks][: rank + 1]))
    with torch.no_grad():
        choices = block().router.route(*block().router(x)).experts
    assert UNUSED not in choices
    found = []
    for ep, etp in sizes:
        share = ep * etp
        root = init_device_mesh("cpu", (n_ranks // share, ep, etp), mesh_dim_names=("edp", "ep", "etp"))
        flat = init_device_mesh("cpu", (n_ranks // share, share), mesh_dim_names=("edp", "share"))
        place = ExpertParallel(root["ep", "etp"], flat.get_group("share"))
        made = block(place)
        with Exchanged(share) as exchanged:
            own_y, own_dx, own_gradients = run(made, x[own], grad[own])
        torch.testing.assert_close(own_y, y[own], **EXACT)
        torch.testing.assert_close(own_dx, dx[own], **EXACT)
        for name, gradient in own_gradients.items():
            is_expert = name.startswith("experts.")
            expected = part(name, gradients[name], place) if is_expert else gradients[name]
            total = (gradient.to_local() if is_expert else gradient).clone()
            dist.all_reduce(total, group=root.get_group("edp") if is_expert else None)
            torch.testing.assert_close(total, expected, **EXACT, msg=lambda m, n=name, s=(ep, etp): f"{s} {n}: {m}")

        ranks = dist.get_process_group_ranks(place.group)
        tokens = []
        for peer in ranks:
            first = sum(TOKENS[n_ranks][:peer])
            homes = choices[first : first + TOKENS[n_ranks][peer]] // (SETTINGS.n_experts // ep)
            tokens.append([int((homes == p).any(1).sum()) for p in range(ep)])
        expected_bytes = bytes_between(rows_between(tokens, etp), RowSizes(8, 3, 8, 8))
        found.append({"sent": exchanged.bytes, "expected": list(expected_bytes[dist.get_rank(place.group)])})
        found[-1]["order"] = exchanged.order

        before = made(x[own], PackedSequences.from_lengths((x[own].shape[0],)))
        with MoEBlocks(ArchonOptions()).whole_experts([made]), torch.no_grad(), Exchanged(share) as exchanged:
            alone = made(x[own], PackedSequences.from_lengths((x[own].shape[0],)))
        assert exchanged.calls == 0
        torch.testing.assert_close(alone, before, **EXACT)
    return found


@pytest.mark.parametrize(
    ("n_ranks", "sizes"),
    [(2, [(2, 1), (1, 2)]), (8, [(4, 2), (2, 2), (2, 4), (4, 1), (1, 4)])],
    ids=["2 ranks", "8 ranks"],
)
def test_any_ep_and_etp_give_the_outputs_and_gradients_of_one_process(n_ranks: int, sizes: list) -> None:
    for rank, found in enumerate(run_world(compare_with_one_process, n_ranks, (sizes,), time_limit=180)):
        for size, of_size in zip(sizes, found, strict=True):
            assert of_size["sent"] == of_size["expected"], (rank, size)
            assert re.fullmatch(OVERLAPPED, of_size["order"]), (rank, size, of_size["order"])


def test_a_size_that_does_not_divide_names_the_largest_smaller_one_that_does() -> None:
    check_sizes(replace(SETTINGS, expert_bias=False), 8, 16)
    with pytest.raises(LayoutError, match=r"etp \(t of the ffn part\) = 16, .*8 \(hidden size, .* is 8"):
        check_sizes(SETTINGS, 8, 16)
    with pytest.raises(LayoutError, match=r"e = 6, which does not divide the model's 8 \(experts\).* is 4"):
        check_sizes(SETTINGS, 6, 1)
    with pytest.raises(LayoutError, match=r"etp \(t of the ffn part\) = 3, .*16 \(intermediate size.* is 2"):
        check_sizes(SETTINGS, 1, 3)
