"""The errors of runs without enough servers: which ones left, and why."""

from __future__ import annotations

from archon_core.contracts.rollout import RolloutConfig
from archon_rollout.pool.members import IN_SERVICE, PoolStatus


def explain_lack(status: PoolStatus, found: int, options: RolloutConfig, *, section: str) -> str:
    """The error of a run that found fewer servers than ``min_servers`` in ``setup_timeout`` seconds."""
    line = (
        f"{section} servers: found {found} after {options.setup_timeout:g} s; allowed is at least "
        f"{section}.min_servers={options.min_servers}; start servers, or raise {section}.setup_timeout"
    )
    return "\n".join([line, *_absences(status)])


def explain_losses(status: PoolStatus, times: int, options: RolloutConfig, *, section: str) -> str:
    """The error of requests during which all servers left ``times`` times in a row, and completed none."""
    line = (
        f"{section} requests: all servers left {times} times in a row, and completed no request meanwhile; allowed are "
        f"{max(1, options.request_retries)} times ({section}.request_retries, at least 1); repair the servers, or "
        "raise the limits of their probes"
    )
    return "\n".join([line, *_absences(status)])


def _absences(status: PoolStatus) -> list[str]:
    """Why servers are not in service, a line each."""
    lines = []
    for member in status.members.values():
        if member.state not in IN_SERVICE:
            reason = f": {member.reason}" if member.reason else ""
            lines.append(f"  {member.record.address} is {member.state}{reason}")
    if status.registry_error:
        lines.append(f"  the registry cannot be read: {status.registry_error}")
    return lines
