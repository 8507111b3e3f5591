"""The link between the actor's ranks and the ranks of a separated role.

The actor's ranks ask, the role's ranks answer. A request goes from the actor's first rank to all ranks of the role, and
an answer from the role's first rank to all of the actor's. So every process gets exactly one copy, and all ranks of
either side continue with equal values.

An error on either side ends both. A role's rank that fails sends its error as the answer before it ends; if the run of
the actor's ranks ends, with or without an error, their first rank sends ``RunEnd``. A process that is killed closes its
connections, which every waiting rank notices.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from archon_core.errors import ArchonError
from archon_core.ranks.error_file import is_connection_loss
from archon_core.ranks.failing_together import Failure

if TYPE_CHECKING:
    from torch import Tensor

LAST_WORDS_SECONDS = 3.0
"""Time that a failing process takes to send its error. The other side reads it when it has finished its work; if that
takes longer, it loses the connection instead, and the launcher still has the error."""


@dataclass(frozen=True)
class RoleMessage:
    """A request or an answer.

    Attributes:
        content: small Python values, which are pickled.
        tensors: by name; they arrive on the CPU.
    """

    content: Any
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class RunEnd:
    """The last request: the run of the actor's ranks has ended.

    Attributes:
        code: exit code: 0, or 128 and the number of the signal that stopped the run.
        failure: the error that ended it, if any.
        relayed: whether ``failure`` is the error of another rank.
    """

    code: int = 0
    failure: Failure | None = None
    relayed: bool = False

    def raise_error(self) -> None:
        """Raise what the actor's ranks raised.

        Raises:
            ArchonError: the run failed.
            KeyboardInterrupt: the user stopped it.
        """
        if self.failure is not None:
            error = self.failure.kind(self.failure.text)
            error.is_relayed = self.relayed
            raise error
        if self.code:
            raise KeyboardInterrupt("the actor's ranks stopped")


class Channel(Protocol):
    """Carries messages from one process to all other members, in order."""

    def send(self, message: RoleMessage) -> None:
        """Send a message, as the one sender."""

    def receive(self) -> RoleMessage:
        """Wait for the next message, as any other member."""


@dataclass
class RoleLink:
    """One process's end of a link.

    A link holds at most one request without a received answer: neither side sends before the other one receives, so two
    messages in opposite directions would wait for each other forever.

    Attributes:
        first: first rank of the role, for messages.
        requests: from the actor's first rank to the role's ranks; ``None`` for the other ranks of the actor.
        answers: from the role's first rank to the actor's ranks; ``None`` for the other ranks of the role.
        background: a second link of the same processes, for their background threads.
    """

    first: int
    requests: Channel | None
    answers: Channel | None
    background: RoleLink | None = None
    _asked: int = 0
    _answered: int = 0
    _waiting: dict[int, RoleMessage] = field(default_factory=dict)

    def tell(self, content: Any) -> None:
        """Send a request that has no answer, on every rank of the actor; only the first one's argument counts."""
        self.finish()
        if self.requests is not None:
            self.requests.send(RoleMessage(content))

    def request(self, content: Any, tensors: Mapping[str, Tensor] | None = None) -> int:
        """Send a request, on every rank of the actor; only the first one's arguments count. Waits for the answers to
        earlier requests.

        Returns:
            The number of the request, for ``answer``.
        """
        self.finish()
        if self.requests is not None:
            self.requests.send(RoleMessage(content, tensors or {}))
        self._asked += 1
        return self._asked

    def finish(self) -> None:
        """Wait for the answers to all requests, which stay available to ``answer``.

        Raises:
            ArchonError: the role's ranks failed; of the class of their error.
        """
        while self._answered < self._asked:
            assert self.answers is not None, "the actor's ranks receive answers"
            message = self.answers.receive()
            if isinstance(message.content, Failure):
                failure = message.content
                error = failure.kind(f"rank {self.first} failed: {failure.text}")
                error.is_relayed = True
                raise error
            self._answered += 1
            self._waiting[self._answered] = message

    def answer(self, number: int) -> RoleMessage:
        """Wait for the answer to a request, on every rank of the actor. Raises as ``finish``."""
        if number not in self._waiting:
            self.finish()
        return self._waiting.pop(number)

    def ask(self, content: Any, tensors: Mapping[str, Tensor] | None = None) -> RoleMessage:
        """``request`` and ``answer``."""
        return self.answer(self.request(content, tensors))

    def next_request(self) -> RoleMessage:
        """Wait for the next request, on every rank of the role."""
        assert self.requests is not None, "the role's ranks receive requests"
        return self.requests.receive()

    def reply(self, content: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Answer the last request, on every rank of the role; only the first one's arguments count."""
        if self.answers is not None:
            self.answers.send(RoleMessage(content, tensors or {}))

    @contextmanager
    def replying_errors(self) -> Iterator[None]:
        """If the block raises on the role's first rank, send the error as the answer; raises it in any case."""
        try:
            yield
        except Exception as error:
            failure = Failure.of(error)
            if self.answers is not None and not is_connection_loss(error):
                _briefly(lambda: self.reply(failure))
            raise


@contextmanager
def ending(links: Mapping[str, RoleLink]) -> Iterator[None]:
    """If the block raises on the actor's ranks, end the role's ranks with the same error. After success, the caller
    sends ``RunEnd``.

    Args:
        links: role -> link; roles that share ranks have the same one.
    """
    try:
        yield
    except Exception as error:
        # After a lost connection, its other end has the cause. The role's ranks lose theirs when this process ends.
        if not is_connection_loss(error):
            relayed = isinstance(error, ArchonError) and error.is_relayed
            end = RunEnd(failure=Failure.of(error), relayed=relayed)
            for link in distinct(links):
                if link.requests is not None:
                    _briefly(partial(link.tell, end))
        raise


def distinct(links: Mapping[str, RoleLink]) -> list[RoleLink]:
    """The links, each once."""
    return list({id(link): link for link in links.values()}.values())


def _briefly(send: Callable[[], None]) -> None:
    """Send from a process that ends to others that may be gone, or busy for long."""

    def run() -> None:
        with contextlib.suppress(Exception):
            send()

    thread = threading.Thread(target=run, name="archon-last-words", daemon=True)
    thread.start()
    thread.join(LAST_WORDS_SECONDS)
