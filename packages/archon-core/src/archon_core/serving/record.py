"""What is known of an inference server: its record in a registry, its state, its capabilities, its start command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from archon_core.errors import ServerError
from archon_core.serving.wire import fields_of, to_data

PauseMode = Literal["keep", "wait", "abort"]
"""What a pause does with running requests: ``keep`` stops them between two tokens and continues them on resume,
``wait`` lets them finish, ``abort`` ends them and returns the tokens that they have."""


@dataclass(frozen=True)
class ServerRecord:
    """One running server, as it announces itself in a registry.

    Attributes:
        address: ``host:port`` of its HTTP interface.
        incarnation: uuid of this start. A restarted server on the same address has another one and is another member.
        kind: name of its ``ServerDriverSpec``, such as ``served`` or ``vllm``.
        tensor: ranks that share each layer.
        pipeline: pipeline stages.
        version: version of the weights in use when the record was written.
        started_at: seconds since the epoch, by the server's clock; for display only.
    """

    address: str
    incarnation: str
    kind: str
    tensor: int = 1
    pipeline: int = 1
    version: int = 0
    started_at: float = 0.0

    @property
    def world_size(self) -> int:
        """Number of the server's ranks."""
        return self.tensor * self.pipeline

    def as_data(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return to_data(self)

    @classmethod
    def from_data(cls, data: Any) -> ServerRecord:
        """Read a received record. Raises ServerError if it is malformed."""
        record = cls(
            **fields_of(
                cls,
                data,
                address=str,
                incarnation=str,
                kind=str,
                tensor=int,
                pipeline=int,
                version=int,
                started_at=float,
            )
        )
        host, colon, port = record.address.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise ServerError(f"server record: found address {record.address!r}; allowed is host:port; correct it")
        if not record.incarnation or record.tensor < 1 or record.pipeline < 1:
            raise ServerError(
                f"server record of {record.address}: found incarnation {record.incarnation!r}, tensor {record.tensor}, "
                f"pipeline {record.pipeline}; allowed are a uuid and sizes of 1 or more; restart the server"
            )
        return record


@dataclass(frozen=True)
class ServerState:
    """A server's own answer to a query of its state. After an uncertain call, only this decides what happened.

    Attributes:
        incarnation: uuid of the server's start.
        version: version of the weights that make the next token.
        paused: whether generation is paused.
        prepared: version that the server has received and verified, but not committed; ``None`` without one.
        updating: version that the server is receiving; ``None`` outside an update.
        running: number of requests in progress; ``None`` if the server does not report it.
        tokens_per_second: throughput of the last seconds; ``None`` if the server does not report it.
    """

    incarnation: str
    version: int
    paused: bool
    prepared: int | None = None
    updating: int | None = None
    running: int | None = None
    tokens_per_second: float | None = None

    def as_data(self) -> dict[str, Any]:
        """The state as a JSON object."""
        return to_data(self)

    @classmethod
    def from_data(cls, data: Any) -> ServerState:
        """Read a received state. Raises ServerError if it is malformed."""
        optional = (int, type(None))
        return cls(
            **fields_of(
                cls,
                data,
                incarnation=str,
                version=int,
                paused=bool,
                prepared=optional,
                updating=optional,
                running=optional,
                tokens_per_second=(float, type(None)),
            )
        )


@dataclass(frozen=True)
class ServerCapabilities:
    """What a kind of server can do.

    Attributes:
        transports: names of the weight transports that it can receive from.
        pause_modes: the pause modes that it has.
        staged: whether it receives new weights beside the old ones and switches on commit. Otherwise it loads in place,
            and pause, load and resume are one critical section.
        checksums: whether it reports checksums of the weights that it received.
        token_versions: whether completions carry the version of each token.
        routed_experts: whether completions carry the experts of each token.
        interrupt: whether aborted requests return the tokens that they have.
        scores: whether it computes log-probabilities of given tokens.
        score_temperatures: whether it does so at any temperature; otherwise at 1 only.
        max_sequences: number of sequences that a client may have in progress on a server, slightly below the server's
            batch size, which leaves room for probes and canaries. ``None`` for any number.
    """

    transports: tuple[str, ...]
    pause_modes: tuple[PauseMode, ...]
    staged: bool = False
    checksums: bool = False
    token_versions: bool = False
    routed_experts: bool = False
    interrupt: bool = False
    scores: bool = False
    score_temperatures: bool = False
    max_sequences: int | None = None


def sequences_beside_probes(batch: int) -> int:
    """``ServerCapabilities.max_sequences`` of a server that decodes ``batch`` sequences at once."""
    return max(1, batch - max(1, batch // 32))


@dataclass(frozen=True)
class ServerLaunch:
    """How to start a server.

    Attributes:
        command: program and arguments.
        environment: variables to add to the environment. Secrets belong here, because other users can read a command
            line.
        n_processes: ranks of the server, for the plan of processes.
        ends_with_parent: whether the server ends when the process that started it dies. Otherwise a guard process ends
            it.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    n_processes: int = 1
    ends_with_parent: bool = False
