"""Tied weights on different pipeline stages: an embedding, and a head on a later stage.

Each stage holds a copy. Both start equal, get the sum of both gradients and the same update, so they stay equal to the
bit. Norms and checkpoints include only the first copy, the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from archon_core.contracts.pipeline import PipelineParts
from archon_engine.parallel.shards import local_values


@dataclass(frozen=True)
class TiedCopies:
    """The tied weights of a pipeline that have copies on different stages.

    Attributes:
        originals: name of each copy -> name of its original, in the whole model.
        parameters: name -> parameter, for the parameters of this process.
        pipeline: this process's part of the pipeline.
    """

    originals: Mapping[str, str]
    parameters: Mapping[str, nn.Parameter]
    pipeline: PipelineParts

    @property
    def held(self) -> dict[str, str]:
        """Name of each copy on this process -> name of its original."""
        return {name: original for name, original in self.originals.items() if name in self.parameters}

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Give both copies the sum of their gradients. Collective over the pipeline.

        FSDP2 has already reduced them over data ranks, so each process exchanges only its shard.
        """
        rank, (embedding_on, head_on) = self.pipeline.rank, self._ends
        for name, original in self.originals.items():
            if embedding_on == head_on:
                self._sum_here(name, original)
            elif rank in (embedding_on, head_on):
                self._sum_with_other(name if rank == head_on else original)

    @property
    def _ends(self) -> tuple[int, int]:
        """The pipeline ranks of the first stage, which has the originals, and of the last, which has the copies.

        They are the same rank if stages are placed in a V.
        """
        plan = self.pipeline.plan
        return plan.rank_of[0], plan.last_rank

    def _sum_here(self, name: str, original: str) -> None:
        if self.pipeline.rank == self.pipeline.plan.last_rank:
            mine, other = (_gradient(self.parameters[n]) for n in (original, name))
            mine.add_(other)
            other.copy_(mine)

    def _sum_with_other(self, name: str) -> None:
        mine = _gradient(self.parameters[name])
        other = torch.empty_like(mine)
        group, (embedding_on, head_on) = self.pipeline.group, self._ends
        has_original = self.pipeline.rank == embedding_on
        peer = dist.get_global_rank(group, head_on if has_original else embedding_on)
        # One after the other, not as a batch: with NCCL the first batch of a group needs all of its ranks.
        # The order differs between the two ends, or both would wait in send.
        if has_original:
            dist.send(mine.contiguous(), peer, group=group)
        dist.recv(other, peer, group=group)
        if not has_original:
            dist.send(mine.contiguous(), peer, group=group)
        mine.add_(other)  # a + b is b + a to the bit, so both copies get the same sum

    @torch.no_grad()
    def copy_originals(self) -> None:
        """Fill the copies on the same process as their originals, after the originals were loaded."""
        for name, original in self.held.items():
            if original in self.parameters:
                local_values(self.parameters[name]).copy_(local_values(self.parameters[original]))


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The local part of a gradient; zeros if no token reached the weight, because the peer waits in any case."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local_values(parameter.grad)
