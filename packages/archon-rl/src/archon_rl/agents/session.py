"""``Session``: one run of an agent on one sample of a record, from its start to its reward."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest
from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.workflows import Trajectory
from archon_core.errors import ArchonError, DataError, RefusedRequestError, ServerError, TooLongRequestError
from archon_core.seeding import derive_seed
from archon_core.serving.openai_answers import Answer, Piece
from archon_rl.agents.answers import AnswerReader, before_stop
from archon_rl.agents.calls import Call, CallTree
from archon_rl.agents.chat_messages import Matcher, normal_messages
from archon_rl.agents.chat_requests import ChatRequest, TooLongError, sampling_of
from archon_rl.agents.errors import SessionError
from archon_rl.agents.exporting import (
    concat_trajectories,
    individual_trajectories,
    whole_session,
    with_session_facts,
)
from archon_rl.agents.prompts import PromptBuilder


@dataclass(frozen=True)
class SessionParts:
    """What all sessions of a run share.

    Attributes:
        prompts: builds prompts.
        reader: reads answers.
        decode: token ids -> text without special tokens.
        decode_literally: token ids -> text with special tokens.
        options: the sampling options of every call.
        repeatable: sampling options whose values a request may repeat.
        preprocessors: change the messages of every call.
        matches: whether messages are the same.
        max_tokens: largest number of tokens of a call; ``None`` for no limit.
        export_style: ``individual`` or ``concat``.
        turn_discount: discount from call to call.
        drops_repeated: leave out answers to calls that the agent repeated.
    """

    prompts: PromptBuilder
    reader: AnswerReader
    decode: Callable[[Sequence[int]], str]
    decode_literally: Callable[[Sequence[int]], str]
    options: GenerationConfig
    repeatable: Sequence[GenerationConfig]
    preprocessors: Sequence[Callable[[list[dict[str, Any]]], list[dict[str, Any]]]]
    matches: Matcher
    max_tokens: int | None
    export_style: str
    turn_discount: float
    drops_repeated: bool


@dataclass(eq=False)
class Session:
    """A session.

    Attributes:
        parts: shared by all sessions.
        client: completes prompts.
        seed: of the sample.
        id: in the session's URL.
        key: the session's API key.
        tree: the answered calls.
        ended: set when the session has ended.
        error: an error of the servers, which concerns the whole run; ``None`` after a later answer.
    """

    parts: SessionParts
    client: RolloutClient
    seed: int
    id: str = field(default_factory=lambda: f"session-{secrets.token_hex(8)}")
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    tree: CallTree = field(init=False)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    error: ServerError | None = None
    _n_begun: int = 0
    _prompts: Counter[tuple[int, ...]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.tree = CallTree(self.parts.matches)

    def accepts(self, key: str) -> bool:
        """Whether ``key`` is the session's."""
        return hmac.compare_digest(key.encode(), self.key.encode())

    async def answer(self, request: ChatRequest) -> tuple[Answer, Piece]:
        """Sample and record the answer of a call.

        Raises:
            TooLongError: its prompt leaves no room for an answer.
            DataError: the request is invalid.
            SessionError: the session has ended.
            ServerError: no server completed the call.
        """
        self._check_open()
        number, self._n_begun = self._n_begun, self._n_begun + 1
        messages = request.messages
        for preprocess in self.parts.preprocessors:
            messages = preprocess(messages)
        normal = normal_messages(messages)
        parent = self.tree.continued_by(normal, request.tools)
        prompt = self.parts.prompts.build(normal, request.tools, parent)
        options = sampling_of(request, self.parts.options, len(prompt.ids), self.parts.max_tokens)
        completion = await self._complete(prompt.ids, options, self._seed_of(prompt.ids, request.seed))
        self._check_open()
        if not completion.token_ids:
            raise TooLongError(f"messages: found {len(prompt.ids)} tokens, which leave no room for an answer")
        read = self.parts.reader.read(
            before_stop(self.parts.decode(completion.token_ids), options.stop or ()),
            completion.stop_reason,
            tools=request.tools,
            one_call=request.one_call,
        )
        answer = Answer(
            request.model,
            is_chat=True,
            n_prompt_tokens=len(prompt.ids),
            decode=self.parts.decode,
            logprobs=request.logprobs,
        )
        call = Call(
            id=answer.id,
            number=number,
            messages=normal,
            tools=request.tools,
            prompt_ids=prompt.ids,
            prompt_text=prompt.text,
            completion=completion,
            answer_text=self.parts.prompts.answer_text(completion),
            answer=read.message(),
            parent=prompt.parent,
        )
        self.tree.calls.append(call)
        piece = Piece(
            0,
            read.content,
            completion.token_ids,
            completion.logprobs,
            read.end,
            completion.versions,
            read.tool_calls,
            read.reasoning,
        )
        return answer, piece

    def give_reward(self, reward: float, call_id: str | None = None) -> None:
        """Record a reward, of the answer with an id or of the last call. A later reward replaces it.

        Raises:
            SessionError: the session has ended, or has no such call.
        """
        self._check_open()
        ordered = self.tree.ordered()
        found = ordered[-1:] if call_id is None else [call for call in ordered if call.id == call_id]
        if not found:
            known = "it has none" if not ordered else f"its answers are {', '.join(call.id for call in ordered)}"
            which = "its last call" if call_id is None else repr(call_id)
            raise SessionError(f"reward: found a reward of {which} in a session without such a call; {known}")
        found[0].reward = reward

    def give_rewards(self, rewards: float | Mapping[str, float]) -> None:
        """Record the rewards that an agent returned. Raises SessionError as ``give_reward`` does."""
        if isinstance(rewards, Mapping):
            for call_id, reward in rewards.items():
                self.give_reward(reward, call_id)
        else:
            self.give_reward(rewards)

    def end(self) -> None:
        """End the session: no further call is answered."""
        self.ended.set()

    def trajectories(self) -> list[Trajectory]:
        """What to train on.

        Raises:
            SessionError: there is no reward.
        """
        self._require_reward()
        tree = self.tree
        if self.parts.drops_repeated:
            dropped = set(map(id, tree.repeated()))
            tree = CallTree(tree.matches, [call for call in tree.calls if id(call) not in dropped])
        if self.parts.export_style == "concat":
            found = concat_trajectories(tree, self.parts.turn_discount)
        else:
            found = individual_trajectories(tree.ordered(), self.parts.turn_discount)
        return with_session_facts(found, self.tree.ordered())

    def evaluated(self) -> Trajectory:
        """The whole session, for an evaluation. Raises SessionError as ``trajectories`` does."""
        self._require_reward()
        return whole_session(self.tree.ordered())

    def _require_reward(self) -> None:
        if all(call.reward is None for call in self.tree.calls):
            what = "a reward" if self.tree.calls else "a call of the model"
            raise SessionError(f"the session ended without {what}; let the agent return a number")

    async def _complete(self, prompt: tuple[int, ...], options: GenerationConfig, seed: int) -> Completion:
        """The completion; ends with the session."""
        request = GenerationRequest(prompt, options, (seed,), self.parts.decode_literally)
        generating = asyncio.ensure_future(self.client.generate(request))
        ended = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait((generating, ended), return_when=asyncio.FIRST_COMPLETED)
            if not generating.done():
                self._check_open()
            [completion] = generating.result()
            self.error = None  # the agent has repeated the call that failed, or goes on without it
            return completion
        except TooLongRequestError as error:
            raise TooLongError(f"messages: {error}") from error
        except RefusedRequestError as error:
            raise DataError(f"the server refused the request: {error}") from error
        except ServerError as error:
            self.error = error
            raise
        finally:
            ended.cancel()
            await _cancel(generating)

    def _seed_of(self, prompt: tuple[int, ...], given: int | None) -> int:
        """A seed that does not depend on the order in which parallel calls arrive."""
        repetition, self._prompts[prompt] = self._prompts[prompt], self._prompts[prompt] + 1
        digest = derive_seed(0, "prompt", *prompt)
        return derive_seed(self.seed, "call", digest, repetition, *([] if given is None else [given]))

    def _check_open(self) -> None:
        if self.ended.is_set():
            raise SessionError("the session has ended; start another one")


async def _cancel(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end."""
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ArchonError):
            await task
