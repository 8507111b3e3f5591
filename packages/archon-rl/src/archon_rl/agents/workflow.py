"""The workflow ``agent``: every sample of a record is a session of an agent.

``AgentEvaluation`` runs the same agents on held-out records, at the same server: sessions differ in their parts alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from archon_core.contracts.serving import RolloutClient
from archon_core.contracts.workflows import Trajectory, WorkflowParts
from archon_rl.agents.app import build_app, session_path
from archon_rl.agents.directory import SessionDirectory, WaitingGroup
from archon_rl.agents.errors import SessionError
from archon_rl.agents.listening import AgentServer
from archon_rl.agents.options import AgentOptions
from archon_rl.agents.processes import ProcessAgents
from archon_rl.agents.session import Session, SessionParts
from archon_rl.agents.session_parts import agent_source, session_parts
from archon_rl.agents.source import AgentCaller, Rewards
from archon_rl.workflows.together import together
from archon_train.run.folder import RunFolder

ADDRESS_FILE = "agents.json"
"""In the run folder, with ``online``: where agents start sessions, and the key."""


class Agents(Protocol):
    """Runs the run's agent for one session."""

    async def run(self, record: Mapping[str, Any], connection: Mapping[str, Any], seconds: float) -> Rewards:
        """The rewards that the agent returned.

        Raises:
            SessionError: it failed.
            TimeoutError: it needed more than ``seconds``.
        """

    async def close(self) -> None:
        """Free the resources. Idempotent."""


@dataclass(frozen=True)
class InlineAgents:
    """Runs the agent as a coroutine of the collector."""

    caller: AgentCaller

    async def run(self, record: Mapping[str, Any], connection: Mapping[str, Any], seconds: float) -> Rewards:
        """See ``Agents``."""
        async with asyncio.timeout(seconds):
            return await self.caller.call(record, **connection)

    async def close(self) -> None:
        """See ``Agents``."""
        await self.caller.close()


def agent_workflow(config: Any, parts: WorkflowParts) -> AgentWorkflow:
    """Build the workflow; a ``WorkflowFactory``.

    Raises:
        ConfigError: a function or a parser of ``rollout.agent`` cannot be loaded.
    """
    options: AgentOptions = config.rollout.agent
    agents: Agents | None = None
    if options.mode == "inline":
        for name in ("httpx", "httpx2"):  # the OpenAI client's library, which logs every request
            logging.getLogger(name).setLevel(logging.WARNING)
        agents = InlineAgents(AgentCaller(agent_source(options).build(options.agent_kwargs)))
    elif options.mode == "subproc":
        agents = ProcessAgents(agent_source(options), options.agent_kwargs, options.subproc_max_workers)
    folder = RunFolder.at(config.cluster.fileroot, config.experiment_name, config.trial_name)
    shared = session_parts(options, parts, use_chat_template=config.tokenizer.use_chat_template)
    return AgentWorkflow(options, shared, agents, folder.path / ADDRESS_FILE)


def agent_evaluation(config: Any, workflow: AgentWorkflow, parts: WorkflowParts) -> AgentEvaluation:
    """The workflow of a run's evaluations.

    Args:
        config: the run's configuration.
        workflow: the workflow of training, which has the agents and their server.
        parts: parts of the run, with the sampling options of evaluations.
    """
    shared = session_parts(
        workflow.options,
        parts,
        use_chat_template=config.tokenizer.use_chat_template,
        training=workflow.parts.options,
    )
    return AgentEvaluation(workflow, shared)


@dataclass(frozen=True)
class AgentEvaluation:
    """Evaluates agents; implements ``contracts.workflows.Workflow``. Every session is one trajectory.

    Attributes:
        workflow: runs the sessions.
        parts: what the sessions of evaluations share.
    """

    workflow: AgentWorkflow
    parts: SessionParts

    async def run(self, client: RolloutClient, record: Mapping[str, Any], seeds: Sequence[int]) -> Sequence[Trajectory]:
        """See ``AgentWorkflow.run``."""
        sessions = await self.workflow.run_sessions(self.parts, client, record, seeds)
        return [session.evaluated() for session in sessions]


@dataclass(eq=False)
class AgentWorkflow:
    """Runs agents, and serves them the model.

    Attributes:
        options: of agents.
        parts: of sessions.
        agents: runs the run's agent; ``None`` for agents outside of the run.
        address_file: where agents from outside find the collector.
    """

    options: AgentOptions
    parts: SessionParts
    agents: Agents | None
    address_file: Path
    _directory: SessionDirectory = field(default_factory=SessionDirectory, init=False)
    _server: AgentServer | None = field(default=None, init=False)
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _finishing: dict[str, asyncio.TimerHandle] = field(default_factory=dict, init=False)

    async def run(self, client: RolloutClient, record: Mapping[str, Any], seeds: Sequence[int]) -> Sequence[Trajectory]:
        """See ``Workflow``.

        Raises:
            SessionError: a session has no reward; the group is dropped.
            ServerError: no server completed a call.
        """
        trajectories = []
        for session in await self.run_sessions(self.parts, client, record, seeds):
            trajectories += session.trajectories()
        return trajectories

    async def run_sessions(
        self, parts: SessionParts, client: RolloutClient, record: Mapping[str, Any], seeds: Sequence[int]
    ) -> list[Session]:
        """Run one session per seed to its end. Raises as ``run`` does."""
        server = await self._started()
        sessions = [Session(parts, client, seed) for seed in seeds]
        if self.agents is None:
            await self._attend(WaitingGroup(record, sessions))
        else:
            await together(self._run_agent(server, session, record) for session in sessions)
        return sessions

    async def close(self) -> None:
        """Stop listening, and end the processes of agents."""
        if self.agents is not None:
            await self.agents.close()
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def _run_agent(self, server: AgentServer, session: Session, record: Mapping[str, Any]) -> None:
        assert self.agents is not None
        connection = {"base_url": server.url + session_path(session), "api_key": session.key}
        with self._directory.listing(session):
            try:
                rewards = await self.agents.run(record, connection, self.options.session_timeout_seconds)
            except TimeoutError as error:
                raise self._too_long() from error
            except SessionError as error:
                raise (session.error or error) from error  # an error of the servers made the agent's call fail
            if rewards is not None:
                session.give_rewards(rewards)

    async def _attend(self, group: WaitingGroup) -> None:
        """Wait for agents from outside, and for the end of their sessions."""
        with self._directory.waiting(group):
            await together(self._attend_one(group, session) for session in group.sessions)

    async def _attend_one(self, group: WaitingGroup, session: Session) -> None:
        with self._directory.listing(session):
            await group.wait_for_agent(session)
            try:
                async with asyncio.timeout(self.options.session_timeout_seconds):
                    await session.ended.wait()
            except TimeoutError as error:
                raise session.error or self._too_long() from error
            finally:
                if timer := self._finishing.pop(session.id, None):
                    timer.cancel()
        if session.error is not None and all(call.reward is None for call in session.tree.calls):
            raise session.error

    async def _started(self) -> AgentServer:
        """The server, which the first call starts."""
        async with self._starting:
            if self._server is None:
                is_online = self.agents is None
                key = (self.options.admin_api_key or secrets.token_urlsafe(24)) if is_online else ""
                app = build_app(self._directory, admin_key=key, rewarded=self._rewarded if is_online else None)
                server = AgentServer(app, self.options.host, self.options.port)
                await server.start()
                if is_online:
                    self._write_address(server.advertised_url, key)
                self._server = server
            return self._server

    def _rewarded(self, session: Session, is_of_one_answer: bool) -> None:
        """End a session of an agent from outside after its reward."""
        if is_of_one_answer:
            return
        if timer := self._finishing.pop(session.id, None):
            timer.cancel()
        seconds = self.options.set_reward_finish_timeout
        if seconds == 0:
            session.end()
        else:
            self._finishing[session.id] = asyncio.get_running_loop().call_later(seconds, session.end)

    def _write_address(self, url: str, key: str) -> None:
        content = json.dumps({"url": url, "admin_api_key": key}) + "\n"
        self.address_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.address_file.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it holds a key
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        temporary.replace(self.address_file)

    def _too_long(self) -> SessionError:
        seconds = self.options.session_timeout_seconds
        return SessionError(f"a session had no end within {seconds:g} s (rollout.agent.session_timeout_seconds)")
