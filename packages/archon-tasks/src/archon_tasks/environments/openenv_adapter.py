"""The environment ``openenv``: a running server of OpenEnv, over its web socket.

Each sample has a session of the server. The model's text becomes one field of the action, and one field of the
observation, or the whole of it as JSON, becomes a user's message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from archon_core.errors import ConfigError, DataError
from archon_tasks.environments.options import OPTION, read_options

FIELD = "openenv"
"""Field of a record with further arguments for the environment's ``reset``."""

MAX_SEED = 2**31

_DEFAULTS = {
    "url": "",
    "action_field": "message",
    "action": {},
    "observation_field": "",
    "instruction": "",
    "reset": {},
}


def openenv_environment(options: Mapping[str, Any], seed: int) -> OpenEnvEnvironment:
    """Build the environment; an ``EnvironmentFactory``.

    Raises:
        ConfigError: openenv-core is not installed, or an option is missing or invalid.
    """
    try:
        from openenv.core import GenericEnvClient
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "openenv":
            raise  # the package is there, and its own import fails
        raise ConfigError(
            "environment.name: found 'openenv', whose package openenv-core is not installed; "
            "pip install 'archon-tasks[openenv]'"
        ) from error
    read = read_options("openenv", options, _DEFAULTS)
    if not read["url"]:
        raise ConfigError(
            f"{OPTION}.url: found none; name the server of the environment, such as http://localhost:8000"
        )
    return OpenEnvEnvironment(GenericEnvClient(base_url=read.pop("url")), seed % MAX_SEED, **read)


class OpenEnvEnvironment:
    """A session of an OpenEnv server.

    Args:
        client: of the server, not connected yet.
        seed: for the environment's ``reset``.
        action_field: field of the action for the model's text.
        action: further fields of every action.
        observation_field: field of observations that becomes a message; dots address nested fields; empty for the
            whole observation as JSON.
        instruction: text in front of the first observation.
        reset: arguments of ``reset``.
    """

    def __init__(
        self,
        client: Any,
        seed: int,
        *,
        action_field: str,
        action: Mapping[str, Any],
        observation_field: str,
        instruction: str,
        reset: Mapping[str, Any],
    ) -> None:
        self._client, self._seed = client, seed
        self._action_field, self._action = action_field, action
        self._observation_field, self._instruction, self._reset = observation_field, instruction, reset

    async def reset(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        """See ``Environment``."""
        await self._client.connect()
        result = await self._client.reset(**{"seed": self._seed, **self._reset, **record.get(FIELD, {})})
        shown = self._shown(result.observation)
        text = f"{self._instruction}\n\n{shown}" if self._instruction else shown
        return [{"role": "user", "content": text}]

    async def step(self, message: Mapping[str, Any]) -> tuple[list[dict[str, str]], float, bool]:
        """See ``Environment``."""
        result = await self._client.step({**self._action, self._action_field: message["content"]})
        shown = [{"role": "user", "content": self._shown(result.observation)}]
        return shown, float(result.reward or 0.0), bool(result.done)

    async def close(self) -> None:
        """End the session."""
        await self._client.close()

    def _shown(self, observation: Mapping[str, Any]) -> str:
        if not self._observation_field:
            return json.dumps(observation, ensure_ascii=False)
        value: Any = observation
        for name in self._observation_field.split("."):
            if not isinstance(value, Mapping) or name not in value:
                names = ", ".join(observation)
                raise DataError(
                    f"{OPTION}.observation_field: found {self._observation_field!r}, and an observation with the "
                    f"fields {names}; name one of them, or leave it out for the whole observation"
                )
            value = value[name]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
