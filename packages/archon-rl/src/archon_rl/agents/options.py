"""Options of agents (``rollout.agent``). Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, SHARE, number, one_of, option

LOOPBACK = ("127.0.0.1", "::1", "localhost")
KNOWN_KEY = "areal-admin-key"
"""AReaL's default of ``admin_api_key``, which everyone can read."""


@dataclass
class AgentOptions:
    """Agents that talk to the model through an OpenAI client (``rollout.agent``). They run if ``agent_cls_path`` is set
    or ``mode`` is ``online``.

    Attributes:
        agent_cls_path: the agent: ``module:name`` (``module.name``) of a class with ``async def run(self, data,
            **extra_kwargs)``, or of such a function, in a Python file of the working directory or of a folder of
            ``PYTHONPATH``. It returns the reward of the session, or rewards by id of the answer.
        agent_kwargs: keyword arguments of the class. Not in AReaL.
        mode: where agents run: ``inline`` as coroutines of the collector, ``subproc`` in processes, ``online`` outside
            of the run, which they reach with the admin key.
        subproc_max_workers: processes of ``subproc``; each runs one session at a time.
        session_timeout_seconds: time limit of a session. A group with a session without a reward is dropped.
        set_reward_finish_timeout: ``online``: seconds after a reward in which the agent may still call the model or
            correct the reward; 0 ends the session with its reward.
        admin_api_key: key with which agents of ``online`` start sessions; null draws one and writes it to
            ``agents.json`` in the run folder.
        host: address on which the collector listens for agents. Not in AReaL.
        port: port on which the collector listens; 0 takes any free one. Not in AReaL.
        export_style: what is trained on: ``individual`` makes a trajectory of each call, ``concat`` one of each
            conversation, with all of its answers.
        turn_discount: the return of a call is its reward plus this times the return of the next call.
        drop_retry_orphans: leave out an answer that the agent never read, because it repeated the call.
        chat_template_type: ``hf`` renders each prompt as the chat template does, and keeps the sampled tokens of
            earlier answers where the template keeps their text; ``concat`` always puts new messages behind the tokens
            of the earlier calls, also where the template would drop the reasoning of earlier turns.
        engine_max_tokens: largest number of tokens of a call, prompt and answer together; null for the limit of
            ``gconfig.max_tokens``.
        tool_call_parser: how the model writes calls of tools, by the name of a tool parser.
        reasoning_parser: how the model writes its reasoning, by the name of a reasoning parser; null leaves it in the
            content.
        message_preprocessors: functions of the user's own modules, ``module:function``, that change the messages of
            every call: each takes and returns a list of messages.
        prefix_matcher: function of a user's own module, ``module:function``, that decides whether two lists of messages
            of equal length are the same conversation; null compares roles, texts and calls.
    """

    agent_cls_path: str = ""
    agent_kwargs: dict[str, Any] = field(default_factory=dict)
    mode: str = option("inline", one_of("inline", "subproc", "online"))
    subproc_max_workers: int = option(4, POSITIVE)
    session_timeout_seconds: float = option(3600.0, number(above=0))
    set_reward_finish_timeout: float = option(0.0, NOT_NEGATIVE)
    admin_api_key: str | None = None
    host: str = "127.0.0.1"
    port: int = option(0, number(least=0, most=65535))
    export_style: str = option("individual", one_of("individual", "concat"))
    turn_discount: float = option(1.0, SHARE)
    drop_retry_orphans: bool = False
    chat_template_type: str = option("hf", one_of("hf", "concat"))
    engine_max_tokens: int | None = option(None, POSITIVE)
    tool_call_parser: str = "qwen"
    reasoning_parser: str | None = "qwen3"
    message_preprocessors: list[str] = field(default_factory=list)
    prefix_matcher: str | None = None

    @property
    def is_used(self) -> bool:
        """Whether the run trains on agents."""
        return bool(self.agent_cls_path) or self.mode == "online"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Conflicting options."""
        if self.mode == "online" and self.agent_cls_path:
            yield (
                "agent_cls_path",
                f"found {self.agent_cls_path!r} with mode=online, in which agents run outside of the run; leave it "
                "out, or set mode to inline or subproc",
            )
        if self.host not in LOOPBACK and self.admin_api_key == KNOWN_KEY:
            yield (
                "admin_api_key",
                f"found AReaL's default with host={self.host}, where other machines can reach the collector and "
                "everyone knows that key; set another one, or leave it out to have one drawn",
            )
        if self.admin_api_key == "":
            yield "admin_api_key", "found an empty text, with which anyone could start sessions; leave it out"
