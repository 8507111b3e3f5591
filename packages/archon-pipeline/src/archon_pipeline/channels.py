"""Messages between pipeline ranks: hidden states forward, their gradients back.

Messages carry no metadata: every rank derives the order and the shape of its messages from the schedule, and the header
is compared before the first message of a step. A receive buffer is allocated when its message is due; on the CPU one
message ahead per sender, so that it can arrive while this rank computes.

Each direction between two ranks uses its own process group, in which one rank only sends and the other only receives,
both in the same order. NCCL runs the operations of two ranks in one group one after the other, in the order in which
each rank issued them: with sends and receives of both directions in one group, two ranks that both receive first would
deadlock.
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
from archon_engine.profiling.ranges import profiled_range
from archon_pipeline.program import Message

RECEIVES_AHEAD = 1
"""Receives posted ahead of need per sender, on the CPU alone. On CUDA a receive occupies the device until its message
arrives. The message may depend on work that this rank has not issued yet, and anything that waits for the whole device
(a synchronisation, an allocation that frees memory) would then never return."""


@dataclass(frozen=True)
class Header:
    """What all ranks of a pipeline must agree on before the first message of a step.

    Attributes:
        n_micro_batches: micro-batches of the step.
        tokens: rows of every message.
        width: columns of every message.
        itemsize: bytes of an element.
        is_training: whether gradients come back.
        program: fingerprint of the action lists of all ranks.
    """

    n_micro_batches: int
    tokens: int
    width: int
    itemsize: int
    is_training: bool
    program: int


class Links:
    """The process groups of a pipeline. Construction is collective.

    Args:
        group: the processes of the pipeline, in order. It carries messages to higher ranks, and collectives.
        rank_of: for each stage, the pipeline rank that holds it.
        device: device of the messages.
    """

    def __init__(self, group: dist.ProcessGroup, rank_of: Sequence[int], device: torch.device) -> None:
        self.group = group
        self.members = dist.get_process_group_ranks(group)
        self.rank = dist.get_rank(group)
        self.size = len(self.members)
        # Local synchronisation: the other pipelines of the world create their own groups, in no common order.
        self._downward = dist.new_group(self.members, use_local_synchronization=True)
        self._connect(rank_of, device)

    def send(self, tensor: Tensor, to: int) -> dist.Work:
        """Start to send ``tensor`` to the pipeline rank ``to``; it must not change until the result has completed."""
        work = dist.isend(tensor, self.members[to], group=self._group(self.rank, to))
        assert work is not None, "this process is a member of the group"
        return work

    def receive(self, tensor: Tensor, source: int) -> dist.Work:
        """Start to fill ``tensor`` with the next message of the pipeline rank ``source``."""
        work = dist.irecv(tensor, self.members[source], group=self._group(source, self.rank))
        assert work is not None, "this process is a member of the group"
        return work

    def check(self, header: Header) -> None:
        """Compare this rank's header with the others'. Collective.

        Raises:
            TrainingError: headers differ; raised on every rank.
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
            "pipeline: found ranks that expect different messages; allowed are micro-batches of equal number and "
            "length and equal action lists on all ranks; make data and schedule the same on each:\n  "
            + "\n  ".join(lines)
        )

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy ``tensor`` of the pipeline rank ``source`` into that of every other rank. Collective."""
        dist.broadcast(tensor, self.members[source], group=self.group)

    def broadcast_object(self, value: object, source: int) -> object:
        """The ``value`` of the pipeline rank ``source``, on every rank. Collective; pickled, so keep it small."""
        values = [value]
        dist.broadcast_object_list(values, self.members[source], group=self.group)
        return values[0]

    def _connect(self, rank_of: Sequence[int], device: torch.device) -> None:
        """Exchange a message between all neighbouring ranks, in both directions, one pair after the other.

        With NCCL the first operation between two ranks of a group creates the pair's communicator and blocks the host
        until the other rank creates it as well. In a step, each of two ranks could first receive from the other, in
        different groups, and both would block in different communicators.
        """
        token = torch.zeros(1, device=device)
        # Every rank walks the pairs in the same sorted order, so the first pair that is not done can always proceed.
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
        links: the connections to the other ranks.
        incoming: sending rank -> its messages to this rank, in the order of sending.
        header: holds the shape of the messages.
        dtype: of the messages.
        device: of the messages.
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
        self._source = {message: source for source, messages in incoming.items() for message in messages}
        # A message moves from _due (no buffer yet) to _receiving (receive posted) to _received.
        self._due = {source: deque(messages) for source, messages in incoming.items()}
        self._receiving: dict[int, deque[tuple[Message, Tensor, dist.Work]]] = {source: deque() for source in incoming}
        self._received: dict[Message, Tensor] = {}
        # Sent tensors stay referenced until their send has completed: the backend reads their memory.
        self._sending: dict[Message, tuple[Tensor, dist.Work]] = {}
        self._ahead = RECEIVES_AHEAD if device.type == "cpu" else 0
        for source in incoming:
            self._post_receives(source, self._ahead)

    def put(self, message: Message, tensor: Tensor) -> None:
        """Leave a message for another stage of this rank."""
        self._received[message] = tensor

    def send(self, message: Message, tensor: Tensor, to: int) -> None:
        """Send a message to another rank, without waiting for it to arrive.

        Raises:
            TrainingError: a stage returned a tensor of another shape or dtype than the header announces.
        """
        # A tensor of another size would not fail at the receiver, but shift all later messages.
        if tuple(tensor.shape) != self._shape or tensor.dtype != self._dtype:
            raise TrainingError(
                f"pipeline: found {list(tensor.shape)} {tensor.dtype} for stage {message.to_stage}; "
                f"allowed is {list(self._shape)} {self._dtype}; make the model's stages return hidden states "
                "[tokens, hidden_size] in the engine's compute dtype"
            )
        tensor = tensor.contiguous()
        self._release_sent()
        self._sending[message] = tensor, self._links.send(tensor, to)

    def take(self, message: Message) -> Tensor:
        """Return a message that was put on this rank or sent to it; waits until it has arrived."""
        if message not in self._source:
            return self._received.pop(message)
        source = self._source[message]
        while message not in self._received:
            # A sender's messages arrive in its order; those before the wanted one are kept until they are taken.
            if not self._receiving[source]:
                self._post_receives(source, 1)
            arrived, tensor, work = self._receiving[source].popleft()
            self._post_receives(source, self._ahead)  # before the wait, so that the next one is on its way
            with profiled_range("wait for rank", source):
                work.wait()
            self._received[arrived] = tensor
        # The gradient of a stage's output proves that the next stage has received that output, so its send has
        # completed, which gloo cannot tell without waiting. This bounds the memory of sent activations to those in
        # flight.
        if message.is_gradient:
            self._sending.pop(Message(message.to_stage + 1, False, message.micro_batch), None)
        return self._received.pop(message)

    def close(self) -> None:
        """Wait until all sends have completed."""
        for _, work in self._sending.values():
            work.wait()
        self._sending.clear()

    def _post_receives(self, source: int, count: int) -> None:
        """Post receives of the next messages of ``source`` until ``count`` are outstanding."""
        while self._due[source] and len(self._receiving[source]) < count:
            tensor = torch.empty(self._shape, dtype=self._dtype, device=self._device)
            self._receiving[source].append((self._due[source].popleft(), tensor, self._links.receive(tensor, source)))

    def _release_sent(self) -> None:
        """Free sent tensors whose send has completed, as far as the backend can tell (gloo can only in ``wait``)."""
        done = [message for message, (_, work) in self._sending.items() if work.is_completed()]
        for message in done:
            del self._sending[message]
