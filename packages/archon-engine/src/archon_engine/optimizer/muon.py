"""Muon for sharded matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

Orthogonalising needs the whole matrix. Momentum and weights stay sharded. Once per step, an all-to-all sends every
matrix's update to one rank, which orthogonalises it, and a second all-to-all returns the parts. So the numbers are
those of one process, and the ranks share the work.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from archon_core.models.box import Box
from archon_engine.parallel.shards import box_of_each_rank, local_values
from archon_engine.parallel.shards import holders as holders_of_parts

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, from the same source."""

ITERATIONS = 5
SMALLEST_NORM = 1e-7
"""Avoids division by 0 for a matrix of zeros."""


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalised, for matrices.

    Args:
        params: matrices, or stacks of them in three dims; plain tensors, or DTensors that are sharded or replicated.
        lr: learning rate. Updates are scaled to the size of AdamW's, 0.2 sqrt(max(rows, columns)), so that one rate
            fits both (arXiv:2502.16982).
        weight_decay: decoupled weight decay.
        momentum: decay of the running mean of gradients, in Nesterov's form.
        holders: the processes that hold parts of these matrices; ``None`` for all.
        compute_dtype: the type of forward and backward passes; ``None`` for that of ``params``. See ``orthogonalise``.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        holders: dist.ProcessGroup | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._holders = holders
        self._compute_dtype = compute_dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters with a gradient; these must be the same on every rank."""
        assert closure is None, "Muon evaluates no closure"
        updates: list[tuple[nn.Parameter, dict[str, Any], Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    updates.append((parameter, group, self._momentum_update(parameter, group["momentum"])))
        directions = orthogonalise_all([update for _, _, update in updates], self._holders, self._compute_dtype)
        for (parameter, group, _), direction in zip(updates, directions, strict=True):
            rate = group["lr"]
            weight = local_values(parameter)
            weight.mul_(1 - rate * group["weight_decay"])
            # The sides of the whole matrix, not of the shard: the layout must not change the update.
            weight.add_(direction.to(weight.dtype), alpha=-rate * 0.2 * math.sqrt(max(parameter.shape[-2:])))

    def _momentum_update(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's look-ahead, sharded as the parameter is; updates the running mean."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean, gradient = state["momentum_buffer"], parameter.grad
        local_values(mean).lerp_(local_values(gradient), 1 - momentum)
        update = torch.empty_like(gradient)
        local_values(update).copy_(local_values(gradient).lerp(local_values(mean), momentum))
        return update


def orthogonalise(matrix: Tensor, compute_dtype: torch.dtype | None = None) -> Tensor:
    """Approximate U V^T of the singular value decomposition U S V^T of ``matrix`` [..., A, B] by Newton-Schulz
    iteration.

    It iterates in at least fp32, except on CUDA for gradients of 16-bit passes: there in bfloat16, as published. Small
    singular values grow by a factor of hundreds, and the rounding of the iterations with them: in bfloat16 by up to the
    size of the largest elements where a gradient has a low rank, as an expert's with a few tokens. The rounding depends
    on the order of sums, and so on the layout. Gradients of fp32 passes are exact enough to avoid this.

    Args:
        matrix: the update.
        compute_dtype: the type of the passes that computed its gradients; ``None`` for its own.
    """
    is_coarse = matrix.is_cuda and (compute_dtype or matrix.dtype) in (torch.bfloat16, torch.float16)
    dtype = torch.bfloat16 if is_coarse else torch.promote_types(matrix.dtype, torch.float32)
    x = matrix.to(dtype)
    # X X^T of the shorter side is the smaller product; transposing is undone at the end.
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    # The iteration converges for singular values up to 1; the Frobenius norm bounds the largest of them.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrix.dtype)


def orthogonalise_all(
    updates: Sequence[Tensor], holders: dist.ProcessGroup | None = None, compute_dtype: torch.dtype | None = None
) -> list[Tensor]:
    """The local part of each update, orthogonalised as a whole matrix.

    Collective over ``holders``, the processes that hold parts of them, if any of them is a DTensor.
    """
    if not any(isinstance(update, DTensor) for update in updates):
        return [orthogonalise(update, compute_dtype) for update in updates]
    members = dist.get_process_group_ranks(holders or dist.group.WORLD)
    place = {member: number for number, member in enumerate(members)}
    rank, size = place[dist.get_rank()], len(members)
    # From shapes only, so that every rank computes the same owners without communication.
    owners = balance([math.prod(update.shape) for update in updates], size)
    boxes = [_boxes(update, place) for update in updates]

    # Every rank sends its part of each matrix to the owner; of ranks with copies, only the first sends. Streams have no
    # headers: sender and receiver go through the matrices in the same order.
    outgoing: list[list[Tensor]] = [[] for _ in range(size)]
    expected = [0] * size
    for update, owner, (parts, _) in zip(updates, owners, boxes, strict=True):
        if rank in parts:
            outgoing[owner].append(local_values(update).reshape(-1))
        if owner == rank:
            for source, box in parts.items():
                expected[source] += box.numel
    incoming = _exchange(outgoing, expected, local_values(updates[0]), holders)

    # Owners assemble the matrices, and send every rank, including those with copies, its part of the result.
    outgoing, expected = [[] for _ in range(size)], [0] * size
    for update, owner, (parts, everyone) in zip(updates, owners, boxes, strict=True):
        if owner == rank:
            whole = local_values(update).new_empty(update.shape)
            for source, box in parts.items():
                whole[box.slices] = incoming[source].take(box.numel).view(box.shape)
            direction = orthogonalise(whole, compute_dtype)
            for destination, box in everyone.items():
                outgoing[destination].append(direction[box.slices].reshape(-1))
        if rank in everyone:
            expected[owner] += everyone[rank].numel
    incoming = _exchange(outgoing, expected, local_values(updates[0]), holders)
    return [
        incoming[owner].take(everyone[rank].numel).view(everyone[rank].shape)
        for owner, (_, everyone) in zip(owners, boxes, strict=True)
    ]


def balance(costs: Sequence[int], n_ranks: int) -> list[int]:
    """Assign each cost to a rank so that the sums are balanced: largest first, each to the least loaded rank."""
    loads = [(0, rank) for rank in range(n_ranks)]
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, rank = heapq.heappop(loads)
        owners[index] = rank
        heapq.heappush(loads, (load + costs[index], rank))
    return owners


def _boxes(update: Tensor, place: Mapping[int, int]) -> tuple[dict[int, Box], dict[int, Box]]:
    """Rank within the group -> box: for the rank that sends each part, and for all ranks that hold one."""
    assert isinstance(update, DTensor), "either all matrices are sharded or none is"
    speakers, everyone = holders_of_parts(update), box_of_each_rank(update)
    return {place[r]: box for r, box in speakers.items()}, {place[r]: box for r, box in everyone.items()}


class _Stream:
    """The elements received from one rank, read in the order in which they were sent."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._taken = 0

    def take(self, count: int) -> Tensor:
        self._taken += count
        return self._values[self._taken - count : self._taken]


def _exchange(
    outgoing: Sequence[Sequence[Tensor]], expected: Sequence[int], like: Tensor, group: dist.ProcessGroup | None
) -> list[_Stream]:
    """Send ``outgoing[r]`` to each rank r, and receive ``expected[r]`` elements from it."""
    sent = [sum(part.numel() for part in parts) for parts in outgoing]
    flat = [part for parts in outgoing for part in parts]
    source = torch.cat(flat) if flat else like.new_empty(0)
    received = like.new_empty(sum(expected))
    dist.all_to_all_single(received, source, list(expected), sent, group=group)
    return [_Stream(values) for values in received.split(list(expected))]
