"""What the sizes of a mixture-of-experts block must satisfy."""

from __future__ import annotations

from archon_core.contracts.moe import MoESettings
from archon_core.errors import ModelError


def check_settings(settings: MoESettings) -> None:
    """Refuse blocks that cannot be.

    Raises:
        ModelError: with all that is wrong.
    """
    s = settings
    problems = [
        f"{name}: found {getattr(s, name)}; allowed are numbers from 1"
        for name in ("hidden_size", "intermediate_size", "n_experts", "top_k", "n_groups", "top_k_groups")
        if getattr(s, name) < 1
    ]
    if not problems:
        if s.n_experts % s.n_groups:
            problems.append(f"n_groups: found {s.n_groups}, which does not divide the {s.n_experts} experts")
        elif s.top_k_groups > s.n_groups:
            problems.append(f"top_k_groups: found {s.top_k_groups}; there are {s.n_groups} groups")
        else:
            eligible = s.n_experts // s.n_groups * s.top_k_groups
            if s.top_k > eligible:
                among = "" if s.n_groups == 1 else f" of the {s.top_k_groups} groups a token may take them from"
                problems.append(f"top_k: found {s.top_k}; allowed are 1 to the {eligible} experts{among}")
    if s.shared_intermediate_size < 0:
        problems.append(f"shared_intermediate_size: found {s.shared_intermediate_size}; 0 stands for no shared expert")
    elif s.shared_gate and not s.shared_intermediate_size:
        problems.append("shared_gate: found true without a shared expert; give it a shared_intermediate_size")
    if problems:
        raise ModelError("mixture of experts: these settings cannot be:\n  " + "\n  ".join(problems))
