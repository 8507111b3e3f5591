"""AReaL's ``actor.weight_update_mode`` as ``rollout.weight_transport``."""

from __future__ import annotations

from archon_core.config.raw import RawMapping, prune
from archon_core.contracts.decisions import Decision
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.errors import ArchonError, ConfigError
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import registry
from archon_core.plugins.inference_engines import inference_engines
from archon_train.areal.raw_options import text_of, with_text

OPTION = "actor.weight_update_mode"

TRANSPORTS = {"xccl": ("distributed",), "disk": ("disk",), "awex": ("shm", "ipc")}
"""AReaL's modes -> transports that do the same, the preferred one first."""


def translate_weight_updates(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    """Replace the option by the transport that it means, or by one that the servers support.

    It stays, without effect, if no server gets weights, or the driver of the servers is not installed.

    Raises:
        ConfigError: another mode.
    """
    mode = text_of(tree, OPTION)
    supported = _supported(text_of(tree, "rollout.backend"))
    if not mode or not supported:
        return tree
    if mode not in TRANSPORTS:
        raise ConfigError(f"{OPTION}: found {mode}; allowed are {', '.join(TRANSPORTS)}; choose one")
    source = tree.get(OPTION)
    tree = prune(tree, lambda path, _: path == OPTION)
    if written := text_of(tree, "rollout.weight_transport"):
        reason = f"rollout.weight_transport={written} is given"
        decisions.append(Decision(OPTION, mode, "no effect", reason))
        return tree
    means = TRANSPORTS[mode]
    chosen = next((name for name in means if name in supported), None)
    reason = f"{mode} is named {' or '.join(means)} here"
    if chosen is None:
        chosen = supported[0]
        reason += f", and the servers receive weights by {', '.join(supported)}"
    decisions.append(Decision(OPTION, mode, f"rollout.weight_transport={chosen}", reason))
    return with_text(tree, "rollout.weight_transport", chosen, source.source if source is not None else "AReaL's form")


def _supported(backend: str) -> tuple[str, ...]:
    """The transports of the servers of a backend; empty if it has none, or their driver is not installed."""
    try:
        layout = parse_layout(backend, backends=backend_table((), inference_engines(registry())))
    except ArchonError:
        return ()  # preflight reports the error
    for driver in registry().all(ServerDriverSpec):
        if layout.backend in (driver.name, *driver.aliases):
            return driver.transports_for(layout)
    return ()
