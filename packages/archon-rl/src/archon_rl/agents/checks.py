"""Problems and decisions of ``rollout.agent``, from the configuration alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.tool_calls import ReasoningParserSpec, ToolParserSpec
from archon_core.errors import ArchonError
from archon_core.plugins import registry
from archon_rl.agents.functions import find_agent, find_matcher, find_preprocessor

WORKFLOW = "agent"
"""Name of the workflow."""

DEFAULT_WORKFLOW = "rlvr"


def uses_agents(config: Any) -> bool:
    """Whether a run trains on agents: because of ``workflow`` or of ``rollout.agent``."""
    options = getattr(config.rollout, "agent", None)
    return config.workflow == WORKFLOW or (options is not None and options.is_used)


def runs_agents(config: Any) -> bool:
    """Whether the run starts its agents itself, so that it can evaluate them: not with ``mode=online``."""
    return uses_agents(config) and config.rollout.agent.mode != "online"


def agent_problems(config: Any) -> Iterator[str]:
    """Settings with which agents cannot run."""
    if not uses_agents(config):
        return
    options = config.rollout.agent
    if config.workflow not in (WORKFLOW, DEFAULT_WORKFLOW):
        yield (
            f"workflow: found {config.workflow!r} with rollout.agent, which runs the workflow 'agent'; leave workflow "
            "out, or rollout.agent.agent_cls_path and rollout.agent.mode"
        )
    if config.rollout.backend.partition(":")[0] == "local":
        yield (
            f"rollout.backend: found {config.rollout.backend!r}; agents call the model whenever they want, which the "
            "trainer's own engine cannot serve; allowed are engines with servers; set rollout.backend=served:d1"
        )
    if not options.is_used:
        yield (
            "rollout.agent.agent_cls_path: found none with workflow=agent; set it to module:name of a class with "
            "'async def run(self, data, **extra_kwargs)', or set rollout.agent.mode=online"
        )
    elif options.mode != "online":
        yield from _refusal(lambda: find_agent(options.agent_cls_path))
    for text in options.message_preprocessors:
        yield from _refusal(lambda text=text: find_preprocessor(text))
    if options.prefix_matcher is not None:
        yield from _refusal(lambda: find_matcher(options.prefix_matcher))
    parsers = (("tool_call_parser", ToolParserSpec), ("reasoning_parser", ReasoningParserSpec))
    for option, kind in parsers:
        name = getattr(options, option)
        if name is not None:
            yield from _refusal(lambda kind=kind, name=name: registry().get(kind, name), f"rollout.agent.{option}: ")


def agent_decisions(config: Any) -> Iterator[Decision]:
    """What follows from the use of agents."""
    if not uses_agents(config):
        return
    if config.workflow == DEFAULT_WORKFLOW:
        yield Decision("workflow", config.workflow, WORKFLOW, "rollout.agent has an agent")
    if config.reward is not None and not runs_agents(config):
        reason = "agents from outside reward their sessions in training, and none runs in evaluations"
        yield Decision("reward", config.reward, "in evaluations alone, which score single answers", reason)


def workflow_name(config: Any) -> str:
    """The workflow that a run uses."""
    return WORKFLOW if uses_agents(config) else config.workflow


def _refusal(find: Callable[[], Any], prefix: str = "") -> Iterator[str]:
    try:
        find()
    except ArchonError as error:
        yield f"{prefix}{error}"
