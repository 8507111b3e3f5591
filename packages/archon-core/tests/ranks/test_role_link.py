"""The link between the actor's ranks and those of a role: order of messages, and errors on either side."""

from __future__ import annotations

import threading
from queue import Queue

import pytest

from archon_core.errors import ConfigError, RewardError, WeightsError
from archon_core.ranks.role_link import RoleLink, RoleMessage, RunEnd, distinct, ending


class QueueChannel:
    """``Channel`` between two threads. A sender waits until its message is received, as gloo's do."""

    def __init__(self) -> None:
        self.messages: Queue[RoleMessage] = Queue()

    def send(self, message: RoleMessage) -> None:
        self.messages.put(message)
        self.messages.join()

    def receive(self) -> RoleMessage:
        message = self.messages.get(timeout=30)
        self.messages.task_done()
        return message


class Ends:
    """Both ends of a link, between the actor's first rank and a role of one rank."""

    def __init__(self) -> None:
        requests, answers = QueueChannel(), QueueChannel()
        self.end = RunEnd()
        self.actor, self.role = RoleLink(2, requests, answers), RoleLink(2, requests, answers)

    def serve(self) -> threading.Thread:
        """Answer requests with twice their content, or raise it if it is an error; until the run ends."""

        def run() -> None:
            while not isinstance(content := self.role.next_request().content, RunEnd):
                try:
                    with self.role.replying_errors():
                        if isinstance(content, Exception):
                            raise content
                except type(content):
                    return
                self.role.reply(2 * content)
            self.end = content

        thread = threading.Thread(target=run)
        thread.start()
        return thread


def test_answers_can_be_taken_in_any_order_and_no_two_messages_wait_for_each_other() -> None:
    ends = Ends()
    thread = ends.serve()
    numbers = [ends.actor.request(value) for value in (1, 2, 3)]
    assert [ends.actor.answer(number).content for number in reversed(numbers)] == [6, 4, 2]
    ends.actor.tell(RunEnd())
    thread.join()


def test_the_actor_raises_the_error_of_the_role() -> None:
    ends = Ends()
    thread = ends.serve()
    with pytest.raises(WeightsError, match=r"^rank 2 failed: no such folder$") as raised:
        ends.actor.ask(WeightsError("no such folder"))
    assert raised.value.is_relayed
    thread.join()


def test_an_error_during_a_pass_reaches_the_role_after_its_answer() -> None:
    ends = Ends()
    thread = ends.serve()
    ends.actor.request(1)
    with pytest.raises(RewardError, match="no rewards"), ending({"critic": ends.actor, "ref": ends.actor}):
        raise RewardError("no rewards")
    thread.join()
    with pytest.raises(RewardError, match=r"^no rewards$") as raised:
        ends.end.raise_error()
    assert not raised.value.is_relayed


def test_a_lost_connection_is_not_relayed() -> None:
    ends = Ends()
    lost = RuntimeError("Connection closed by peer [127.0.0.1]:80")
    with pytest.raises(RuntimeError), ending({"critic": ends.actor}):
        raise lost
    assert ends.actor.requests.messages.empty()


@pytest.mark.parametrize(("end", "kind"), [(RunEnd(), None), (RunEnd(130), KeyboardInterrupt)])
def test_the_end_of_a_run_ends_the_role_alike(end: RunEnd, kind: type[BaseException] | None) -> None:
    if kind is None:
        end.raise_error()
        return
    with pytest.raises(kind):
        end.raise_error()


def test_other_ranks_send_nothing_and_receive_every_answer() -> None:
    answers = QueueChannel()
    other = RoleLink(2, None, answers)
    number = other.request("ignored")
    answers.messages.put(RoleMessage("answer"))
    assert other.answer(number).content == "answer"
    with pytest.raises(ConfigError), ending({"critic": other}):
        raise ConfigError("wrong")


def test_roles_that_share_ranks_have_one_link() -> None:
    one, other = RoleLink(1, None, None), RoleLink(2, None, None)
    assert distinct({"critic": one, "ref": one, "teacher": other}) == [one, other]
