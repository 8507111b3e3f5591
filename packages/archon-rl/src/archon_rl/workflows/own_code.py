"""The functions of a user's own modules that a run's workflow consists of, and their fingerprints.

A fingerprint imports nothing: tools, for example, belong to other processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.plugins import registry
from archon_rl.agents.checks import uses_agents, workflow_name
from archon_rl.agents.functions import MATCHER, PREPROCESSORS
from archon_rl.agents.session_parts import agent_source, matcher_source, preprocessor_source
from archon_rl.chosen_function import ChosenFunction
from archon_rl.environments.source import OPTION as ENVIRONMENT
from archon_rl.environments.source import environment_source
from archon_rl.fingerprint import Fingerprint
from archon_rl.rewards.source_fingerprint import check_same, function_fingerprint
from archon_rl.tools.source import OPTION as TOOLS
from archon_rl.tools.source import tool_source
from archon_rl.workflows.source import workflow_source

WORKFLOW = "workflow"
"""The option that names the workflow. An agent is a workflow, too."""


def own_code(config: Any) -> dict[str, list[ChosenFunction]]:
    """Option -> the functions of the user's own modules that it names, for options that name any.

    Raises:
        ArchonError: an option names a function that does not exist.
    """
    found: dict[str, list[ChosenFunction]]
    found = _agent_code(config) if uses_agents(config) else _workflow_code(config)
    own = {option: [one for one in functions if one.folder] for option, functions in found.items()}
    return {option: functions for option, functions in own.items() if functions}


def code_fingerprints(code: Mapping[str, Sequence[ChosenFunction]]) -> dict[str, Fingerprint]:
    """Option -> fingerprint of its functions."""
    return {option: _together([function_fingerprint(one) for one in functions]) for option, functions in code.items()}


def check_code(config: Any, expected: Mapping[str, Fingerprint], where: str) -> None:
    """Raise ConfigError if a process has other code of the workflow than the run started with.

    Args:
        expected: as ``code_fingerprints`` found it then.
        where: the process, for the message.
    """
    for option, found in code_fingerprints(own_code(config)).items():
        check_same(found, expected[option], where, option=option, accepted=WORKFLOW)


def _agent_code(config: Any) -> dict[str, list[ChosenFunction]]:
    options = config.rollout.agent
    return {
        WORKFLOW: [agent_source(options)] if options.agent_cls_path else [],
        PREPROCESSORS: [preprocessor_source(text) for text in options.message_preprocessors],
        MATCHER: [] if options.prefix_matcher is None else [matcher_source(options.prefix_matcher)],
    }


def _workflow_code(config: Any) -> dict[str, list[ChosenFunction]]:
    known = registry()
    found: dict[str, list[ChosenFunction]] = {WORKFLOW: [workflow_source(workflow_name(config), known)]}
    # A configuration has the section of its workflow alone.
    environment, tools = getattr(config, "environment", None), getattr(config, "tools", None)
    if environment is not None and environment.name is not None:
        found[ENVIRONMENT] = [environment_source(environment.name, known)]
    if tools is not None:
        found[TOOLS] = [tool_source(name, known) for name in tools.names]
    return found


def _together(found: Sequence[Fingerprint]) -> Fingerprint:
    """One fingerprint; of a single one, itself."""
    if len(found) == 1:
        return found[0]
    return Fingerprint.of([one.digest for one in found], ", ".join(one.about for one in found))
