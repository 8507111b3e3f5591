"""AReaL's ``actor.weight_update_mode`` as ``rollout.weight_transport``."""

from __future__ import annotations

from archon_core.config.raw import RawMapping, RawScalar, prune
from archon_core.config.typed import Problem
from archon_core.contracts.decisions import Decision
from archon_core.contracts.serving import ServerDriverSpec
from archon_core.errors import ArchonError, ConfigError
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import registry
from archon_core.plugins.inference_engines import inference_engines
from archon_train.areal.facts import facts
from archon_train.areal.raw_options import text_of, with_text

OPTION = "actor.weight_update_mode"

TRANSPORTS = {"xccl": ("distributed",), "disk": ("disk",), "awex": ("shm", "ipc")}
"""AReaL's modes -> transports that do the same, the preferred one first."""


def translate_weight_updates(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    """Replace the option by the transport that it means, or by one that the servers support.

    It stays, without effect, if the driver of the servers is not installed.

    Raises:
        ConfigError: a mode that AReaL does not have.
    """
    mode, written = text_of(tree, OPTION), tree.get(OPTION)
    if not mode or written is None:
        return tree
    if mode not in TRANSPORTS:
        text = f"{OPTION}: found {mode}; allowed are {', '.join(TRANSPORTS)}; choose one"
        raise ConfigError(str(Problem(written.source, text)))
    supported = _supported(text_of(tree, "rollout.backend"))
    if supported is None:
        return tree
    tree = prune(tree, lambda path, _: path == OPTION)
    if not supported:
        if not facts(OPTION)[0].is_default(RawScalar(mode)):
            decisions.append(Decision(OPTION, mode, "no effect", "no server gets weights"))
        return tree
    if transport := text_of(tree, "rollout.weight_transport"):
        decisions.append(Decision(OPTION, mode, "no effect", f"rollout.weight_transport={transport} is given"))
        return tree
    means = TRANSPORTS[mode]
    chosen = next((name for name in means if name in supported), None)
    reason = f"{mode} is named {' or '.join(means)} here"
    if chosen is None:
        chosen = supported[0]
        reason += f", and the servers receive weights by {', '.join(supported)}"
    decisions.append(Decision(OPTION, mode, f"rollout.weight_transport={chosen}", reason))
    return with_text(tree, "rollout.weight_transport", chosen, written.source)


def _supported(backend: str) -> tuple[str, ...] | None:
    """The transports of the servers of a backend; empty without servers, ``None`` if their driver is not installed."""
    if not backend:
        return ()  # completions are sampled on the trainer's ranks
    try:
        layout = parse_layout(backend, backends=backend_table((), inference_engines(registry())))
    except ArchonError:
        return None  # preflight reports the error
    if layout.on_trainer_ranks:
        return ()
    for driver in registry().all(ServerDriverSpec):
        if layout.backend in (driver.name, *driver.aliases):
            return driver.transports_for(layout)
    return None
