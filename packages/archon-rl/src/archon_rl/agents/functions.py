"""Functions of the user's own modules that ``rollout.agent`` names. Finding one imports nothing."""

from __future__ import annotations

import ast

from archon_core.plugins.own_functions import OwnFunction, find_own_function

AGENT = "rollout.agent.agent_cls_path"
PREPROCESSORS = "rollout.agent.message_preprocessors"
MATCHER = "rollout.agent.prefix_matcher"

AGENT_PARAMETERS = ("data",)
PREPROCESSOR_PARAMETERS = ("messages",)
MATCHER_PARAMETERS = ("earlier", "later")


def find_agent(text: str) -> OwnFunction:
    """The class or coroutine function of an agent. Raises ConfigError if there is none."""
    return find_own_function(AGENT, text, AGENT_PARAMETERS, accepted=(ast.ClassDef, ast.AsyncFunctionDef))


def find_preprocessor(text: str) -> OwnFunction:
    """A function of messages. Raises ConfigError if there is none."""
    return find_own_function(PREPROCESSORS, text, PREPROCESSOR_PARAMETERS)


def find_matcher(text: str) -> OwnFunction:
    """A function that compares messages. Raises ConfigError if there is none."""
    return find_own_function(MATCHER, text, MATCHER_PARAMETERS)
