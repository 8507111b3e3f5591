"""Messages between pipeline ranks: hidden states forward, their gradients back.

Shapes are known before the step and said to nobody: the header is where ranks make sure that they mean the same.
Buffers are made when a message is due, on the CPU one ahead per sender, so that it can arrive while this rank computes.
Each direction between two ranks has process groups of its own, in which one side only sends and the other only receives
in the same order: NCCL executes what two ranks ask of one group in the order of asking, and would wait for ever
otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from archon_core.errors import TrainingError
from archon_pipeline.program import Message

AHEAD = 1
"""Messages per sender whose buffers wait for them beyond the one that is needed, on the CPU. A CUDA device that waits
for a message which depends on work behind it in line would stand still if anything waited for the whole device."""


@dataclass(frozen=True)
class Header:
    """What all ranks of a pipeline must agree on before the first message of a step.

    Attributes:
        n_micro_batches: of the step.
        tokens: rows of every message.
        width: columns of every message.
        itemsize: bytes of an element.
        is_training: whether gradients come back.
        program: fingerprint of who sends what in which order.
    """

    n_micro_batches: int
    tokens: int
    width: int
    itemsize: int
    is_training: bool
    program: int


class Links:
    """The process groups of a pipeline; made once, by all of its processes.

    Args:
        group: its processes, in order. It carries what goes to higher ranks, and collectives.
        rank_of: for each stage, the pipeline rank that holds it.
        device: what is sent lies there.
    """

    def __init__(self, group: dist.ProcessGroup, rank_of: Sequence[int], device: torch.device) -> None:
        self.group = group
        self.members = dist.get_process_group_ranks(group)
        self.rank = dist.get_rank(group)
        self.size = len(self.members)
        self._downward = dist.new_group(self.members, use_local_synchronization=True)
        self._connect(rank_of, device)

    def send(self, tensor: Tensor, to: int) -> dist.Work:
        """Begin to send to the pipeline rank ``to``."""
        work = dist.isend(tensor, self.members[to], group=self._group(self.rank, to))
        assert work is not None, "this process is a member of the group"
        return work

    def receive(self, tensor: Tensor, source: int) -> dist.Work:
        """Begin to fill ``tensor`` with what the pipeline rank ``source`` sends next."""
        work = dist.irecv(tensor, self.members[source], group=self._group(source, self.rank))
        assert work is not None, "this process is a member of the group"
        return work

    def check(self, header: Header) -> None:
        """Compare this rank's header with the others'. Collective.

        Raises:
            TrainingError: on every rank, they differ.
        """
        own = torch.tensor([int(getattr(header, field.name)) for field in fields(header)])
        all_headers = [torch.empty_like(own) for _ in self.members]
        dist.all_gather(all_headers, own, group=self.group)
        if all(torch.equal(other, own) for other in all_headers):
            return
        lines = [
            f"pipeline rank {rank}: "
            + ", ".join(f"{f.name}={v}" for f, v in zip(fields(header), other.tolist(), strict=True))
            for rank, other in enumerate(all_headers)
        ]
        raise TrainingError(
            "pipeline: found ranks that expect different messages; all ranks of a pipeline must be given equal "
            "micro-batches, and by the schedule equal lists:\n  " + "\n  ".join(lines)
        )

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Fill ``tensor`` everywhere with the pipeline rank ``source``'s."""
        dist.broadcast(tensor, self.members[source], group=self.group)

    def broadcast_object(self, value: object, source: int) -> object:
        """A small value of the pipeline rank ``source``, everywhere."""
        values = [value]
        dist.broadcast_object_list(values, self.members[source], group=self.group)
        return values[0]

    def _connect(self, rank_of: Sequence[int], device: torch.device) -> None:
        """Send something between all ranks that will, both ways, one pair after the other.

        With NCCL the first operation of two ranks in a group returns when the other rank is in it, too: each of them
        makes the pair's communicator. In a step, both would first receive, each from the other, and wait for ever.
        """
        token = torch.zeros(1, device=device)
        pairs = {pair for a, b in pairwise(rank_of) if a != b for pair in ((a, b), (b, a))}
        for source, to in sorted(pairs):
            if self.rank == source:
                self.send(token, to).wait()
            elif self.rank == to:
                self.receive(token, source).wait()

    def _group(self, source: int, to: int) -> dist.ProcessGroup:
        return self.group if source < to else self._downward


class Mailbox:
    """The messages of one step.

    Args:
        links: to the other ranks.
        incoming: other rank -> what it will send, in order.
        header: their shape.
        dtype: their type.
        device: where they are wanted.
    """

    def __init__(
        self,
        links: Links,
        incoming: Mapping[int, Sequence[Message]],
        header: Header,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._links = links
        self._shape = (header.tokens, header.width)
        self._dtype = dtype
        self._device = device
        self._due = {source: deque(messages) for source, messages in incoming.items()}
        self._source = {message: source for source, messages in incoming.items() for message in messages}
        self._arriving: dict[int, deque[tuple[Message, Tensor, dist.Work]]] = {source: deque() for source in incoming}
        self._here: dict[Message, Tensor] = {}
        self._leaving: dict[Message, tuple[Tensor, dist.Work]] = {}
        self._ahead = AHEAD if device.type == "cpu" else 0
        for source in incoming:
            self._expect(source, self._ahead)

    def put(self, message: Message, tensor: Tensor) -> None:
        """Leave what another stage on this rank will take."""
        self._here[message] = tensor

    def send(self, message: Message, tensor: Tensor, to: int) -> None:
        """Send to another rank."""
        if tuple(tensor.shape) != self._shape or tensor.dtype != self._dtype:
            raise TrainingError(
                f"pipeline: found {list(tensor.shape)} {tensor.dtype} to be handed to stage {message.to_stage}; "
                f"allowed is {list(self._shape)} {self._dtype}: a stage gives hidden states [tokens, hidden_size] in "
                "the engine's compute type"
            )
        tensor = tensor.contiguous()
        self._forget_sent()
        self._leaving[message] = tensor, self._links.send(tensor, to)

    def take(self, message: Message) -> Tensor:
        """What was put or sent for a stage of this rank; waits for it."""
        if message not in self._source:
            return self._here.pop(message)
        source = self._source[message]
        while message not in self._here:
            if not self._arriving[source]:
                self._expect(source, 1)
            arrived, tensor, work = self._arriving[source].popleft()
            self._expect(source, self._ahead)
            work.wait()
            self._here[arrived] = tensor
        # A gradient is the answer to hidden states, which have therefore been received.
        if message.is_gradient:
            self._leaving.pop(Message(message.to_stage + 1, False, message.micro_batch), None)
        return self._here.pop(message)

    def close(self) -> None:
        """Wait until everything sent has been received."""
        for _, work in self._leaving.values():
            work.wait()
        self._leaving.clear()

    def _expect(self, source: int, count: int) -> None:
        """Have buffers for the next messages of ``source``, up to ``count`` at a time."""
        while self._due[source] and len(self._arriving[source]) < count:
            tensor = torch.empty(self._shape, dtype=self._dtype, device=self._device)
            self._arriving[source].append((self._due[source].popleft(), tensor, self._links.receive(tensor, source)))

    def _forget_sent(self) -> None:
        """Free what has been received, where the backend can tell (gloo cannot before it is waited for)."""
        done = [message for message, (_, work) in self._leaving.items() if work.is_completed()]
        for message in done:
            del self._leaving[message]
