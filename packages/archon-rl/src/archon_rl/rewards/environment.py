"""The environment of reward processes: the trainer's without the secrets of the run.

A reward may run code that a model wrote, which must not get the token of the run's inference servers in this way.
Variables of other services stay, since a reward may need them, such as the key of a judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_SECRET = re.compile(r"ARCHON_(.*_)?(TOKEN|KEY|SECRET|PASSWORD)", re.IGNORECASE)


def reward_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without the variables of Archon whose name ends in TOKEN, KEY, SECRET or PASSWORD."""
    return {name: value for name, value in environment.items() if not _SECRET.fullmatch(name)}
