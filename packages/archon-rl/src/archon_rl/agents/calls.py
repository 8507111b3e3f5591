"""The calls of a session: each one a prompt and its sampled answer, as a tree of conversations.

A call whose messages continue an earlier one's messages and answer is its child. The prompt of a child starts with the
tokens of its parent's prompt and answer, as they were sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archon_core.contracts.rollout import Completion
from archon_rl.agents.chat_messages import Matcher, Message


@dataclass(eq=False)
class Call:
    """A call that was answered.

    Attributes:
        id: of the answer, as the agent knows it.
        number: place in the order in which the session's calls began.
        messages: in normal form.
        tools: JSON schemas of the tools on offer.
        prompt_ids: token ids of the prompt.
        prompt_text: text of the prompt, as the chat template renders it.
        completion: the sampled answer.
        answer_text: text of the sampled tokens, special ones included, without the token that ends the answer.
        answer: the answer's message, in normal form.
        parent: the call that it continues; ``None`` for the start of a conversation.
        reward: that the agent gave to the call; ``None`` for none.
    """

    id: str
    number: int
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    prompt_ids: tuple[int, ...]
    prompt_text: str
    completion: Completion
    answer_text: str
    answer: Message
    parent: Call | None = None
    reward: float | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Of prompt and answer."""
        return self.prompt_ids + self.completion.token_ids

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages and the answer."""
        return (*self.messages, self.answer)

    @property
    def path(self) -> list[Call]:
        """The calls of the conversation, from its first one to this one."""
        before = [] if self.parent is None else self.parent.path
        return [*before, self]


@dataclass
class CallTree:
    """The answered calls of a session.

    Attributes:
        matches: whether messages are the same.
        calls: in the order of their answers.
    """

    matches: Matcher
    calls: list[Call] = field(default_factory=list)

    def ordered(self) -> list[Call]:
        """The calls in the order in which they began."""
        return sorted(self.calls, key=lambda call: call.number)

    def continued_by(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Call | None:
        """The call with the longest conversation that ``messages`` continue; the latest of several."""
        found = [call for call in self.calls if self._is_start(call, messages, tools)]
        return max(found, key=lambda call: (len(call.messages), call.number), default=None)

    def leaves(self) -> list[Call]:
        """The calls that no other call continues."""
        parents = {id(call.parent) for call in self.calls}
        return [call for call in self.ordered() if id(call) not in parents]

    def repeated(self) -> Iterator[Call]:
        """Leaves without a reward whose messages a later call has too: an agent that repeats a call after a time limit
        never reads the first answer."""
        for call in self.leaves():
            later = (other for other in self.calls if other.number > call.number and other.tools == call.tools)
            if call.reward is None and any(other.messages == call.messages for other in later):
                yield call

    def _is_start(self, call: Call, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> bool:
        n = len(call.messages) + 1
        if len(messages) <= n or tuple(tools) != call.tools:
            return False
        return self.matches(call.conversation, messages[:n])
