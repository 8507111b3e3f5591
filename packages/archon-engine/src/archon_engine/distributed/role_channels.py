"""Connects the ranks of a trainer whose roles have their own ranks.

Every role's ranks are a world of their own to ``torch.distributed``: its default group, and so every mesh of an engine,
has the ranks of one role. Gloo groups beside them, one per direction, carry requests and answers between the actor's
ranks and those of a role. They are built from torch's public classes and belong to no default group.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from archon_core.ranks.role_link import RoleLink, RoleMessage
from archon_core.ranks.role_ranks import ACTOR, RoleRanks, ranks_of

WAIT = timedelta(days=7)
"""Time limit of a message. A role's ranks wait as long as the actor's ranks sample and train, and only these notice if
a collective of theirs hangs; whoever ends closes its connections, which ends every wait."""

SENDER = 0


@dataclass(frozen=True)
class GroupChannel:
    """Messages over a gloo group, whose rank 0 sends; implements ``archon_core.ranks.role_link.Channel``.

    A message is the size of its header, the header (pickled content, dtypes and shapes of its tensors), and the bytes
    of each tensor.

    Attributes:
        group: a ``dist.ProcessGroupGloo``.
    """

    group: Any

    def send(self, message: RoleMessage) -> None:
        """Send from rank 0."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in message.tensors.items()}
        shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        header = torch.frombuffer(bytearray(pickle.dumps((message.content, shapes))), dtype=torch.uint8)
        self._pass(torch.tensor([header.numel()]))
        self._pass(header)
        for tensor in tensors.values():
            self._pass(_as_bytes(tensor))

    def receive(self) -> RoleMessage:
        """Receive on another rank."""
        size = torch.zeros(1, dtype=torch.int64)
        self._pass(size)
        header = torch.empty(int(size), dtype=torch.uint8)
        self._pass(header)
        content, shapes = pickle.loads(header.numpy().tobytes())
        tensors: dict[str, Tensor] = {}
        for name, (dtype, shape) in shapes.items():
            tensors[name] = torch.empty(shape, dtype=dtype)
            self._pass(_as_bytes(tensors[name]))
        return RoleMessage(content, tensors)

    def _pass(self, data: Tensor) -> None:
        if data.numel():
            self.group.broadcast([data], _FROM_SENDER).wait(WAIT)


def _as_bytes(tensor: Tensor) -> Tensor:
    """A view of the tensor's storage; gloo has no bool, and bfloat16 only since 2.12."""
    return tensor.reshape(-1).view(torch.uint8)


def _from_sender() -> dist.BroadcastOptions:
    options = dist.BroadcastOptions()
    options.rootRank = SENDER
    return options


_FROM_SENDER = _from_sender()


def join_role(store: Any, rank: int, trainer: Sequence[RoleRanks], backends: str, timeout: timedelta) -> RoleRanks:
    """Make the ranks of this process's role the default group of this process. Returns them.

    Args:
        store: of all ranks of the trainer.
        rank: of this process among all ranks.
        trainer: the ranks by role.
        backends: of the default group.
        timeout: limit of collectives within the role.
    """
    own = ranks_of(rank, trainer)
    dist.init_process_group(
        backends,
        store=dist.PrefixStore(f"role/{own.role}", store),
        rank=rank - own.first,
        world_size=own.size,
        timeout=timeout,
    )
    return own


def link_roles(store: Any, rank: int, trainer: Sequence[RoleRanks]) -> Mapping[str, RoleLink]:
    """Connect this process with the other roles. Collective over all ranks of the trainer.

    Returns:
        On the actor's ranks, role -> link to the ranks that run it, for all roles on other ranks. On a role's ranks,
        ``actor`` -> link to the actor's ranks.
    """
    own = ranks_of(rank, trainer)
    actor = next(part for part in trainer if part.role == ACTOR)
    links: dict[str, RoleLink] = {}
    for part in trainer:
        if part is actor or own not in (actor, part):
            continue
        background = _link(store, rank, actor, part, "background")
        link = _link(store, rank, actor, part, "main", background)
        links |= dict.fromkeys(part.roles, link) if own is actor else {ACTOR: link}
    return links


def _link(
    store: Any, rank: int, actor: RoleRanks, part: RoleRanks, name: str, background: RoleLink | None = None
) -> RoleLink:
    prefix = f"link/{part.role}/{name}"
    requests = _channel(store, f"{prefix}/requests", [actor.first, *part.ranks], rank)
    answers = _channel(store, f"{prefix}/answers", [part.first, *actor.ranks], rank)
    return RoleLink(part.first, requests, answers, background)


def _channel(store: Any, prefix: str, members: Sequence[int], rank: int) -> GroupChannel | None:
    if rank not in members:
        return None
    own = dist.PrefixStore(prefix, store)
    return GroupChannel(dist.ProcessGroupGloo(own, members.index(rank), len(members), WAIT))
