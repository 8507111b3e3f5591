"""An environment of OpenEnv behind its real server, for tests: guess a digit.

Run it as ``python openenv_server.py PORT`` where openenv-core is installed.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Guess(Action):
    message: str


class Hint(Observation):
    hint: str


class Guessing(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._answer, self._state = "5", State()

    def reset(self, seed: int | None = None, episode_id: str | None = None, answer: str = "5", **kwargs: Any) -> Hint:
        self._answer = answer
        return Hint(hint=f"Which digit? ({seed})", done=False)

    def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Hint:
        done = action.message == self._answer
        return Hint(hint="less" if action.message > self._answer else "more", done=done, reward=1.0 if done else None)

    @property
    def state(self) -> State:
        return self._state


if __name__ == "__main__":
    app = create_fastapi_app(Guessing, Guess, Hint, max_concurrent_envs=4)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
