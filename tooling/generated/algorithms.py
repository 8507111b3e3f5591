"""Tables of docs/algorithms.md: policy losses, and published algorithms as settings."""

from __future__ import annotations

from collections.abc import Callable

from archon_core.plugins import PolicyLossSpec, registry
from archon_rl.named_settings import NAMED_SETTINGS
from generated.tables import code, codes, table

PAPER = "arXiv:"


def render_losses(is_ours: Callable[[str], bool]) -> str:
    """Every registered policy loss of this repository."""
    rows = [
        [
            code(spec.name),
            _source(spec.source),
            spec.summary,
            "yes" if spec.sequence_level else "no",
            "yes" if spec.decoupled else "no",
        ]
        for spec in registry().all(PolicyLossSpec)
        if is_ours(registry().origin(spec))
    ]
    return table(["`policy_loss`", "source", "what", "per sequence", "decoupled"], rows)


def render_presets() -> str:
    """Every named combination of options."""
    rows = [
        [settings.name, _source(settings.source), settings.summary, codes(settings.overrides)]
        for settings in NAMED_SETTINGS
    ]
    return table(["preset", "source", "what", "options"], rows)


def _source(source: str) -> str:
    if source.startswith(PAPER):
        return f"[{source.removeprefix(PAPER)}](https://arxiv.org/abs/{source.removeprefix(PAPER)})"
    return f"[{source.split('/')[2]}]({source})"
