"""Assembles an engine: selects installed parts for a configuration, and passes them to the engine's factory."""

from __future__ import annotations

from archon_core.config.sections import upgrade
from archon_core.contracts.engine import Selection, TrainEngine, TrainEngineSpec
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.spec import load_target
from archon_core.layout import Layout, backend_table, parse_layout, refuse_axes
from archon_core.plugins.registry import Registry
from archon_core.plugins.registry import registry as installed
from archon_core.selection import select


def assemble(
    config: EngineConfig,
    *,
    role: str = "actor",
    layout: Layout | str | None = None,
    seed: int = 1,
    total_steps: int | None = None,
    explicit: frozenset[str] = frozenset(),
    registry: Registry | None = None,
) -> TrainEngine:
    """Build the training engine of a role from installed parts. Its ``initialize()`` loads the weights.

    With several processes, call it on all of them.

    Args:
        config: the model and its options.
        role: the section's name, for messages: ``actor``, ``critic``, ``ref`` or ``teacher``.
        layout: the layout of the model; ``None`` uses ``config.backend``, or ``archon:d1`` if that is empty.
        seed: the run's seed.
        total_steps: optimizer steps of the run, for learning-rate schedules; ``None`` when unknown.
        explicit: dotted names of the options that the user wrote, as against defaults.
        registry: the installed specs; ``None`` for the registry of this process.

    Raises:
        UnknownNameError: a part is not installed; the message contains the command that installs it.
        LayoutError, ConfigError, ModelError: the layout, options or model are invalid, or do not fit together.
    """
    registry = registry or installed()
    option = f"{role}.backend"
    if not isinstance(layout, Layout):
        text = layout or config.backend or "archon:d1"
        layout = parse_layout(text, backends=backend_table(registry.all(TrainEngineSpec)), option=option)
    engine = registry.get(TrainEngineSpec, layout.backend)
    refuse_axes(layout, engine.axes, option=option)
    config = with_options_of(engine, config, role=role)
    if engine.model_type:
        model_type = engine.load_part("model_type")(config, role=role)
        parts = select(config, layout, registry, model_type=model_type, role=role)
    else:
        parts = Selection(engine)
    factory = engine.load()
    return factory(config, role=role, layout=layout, parts=parts, seed=seed, total_steps=total_steps, explicit=explicit)


def with_options_of(engine: TrainEngineSpec, config: EngineConfig, *, role: str) -> EngineConfig:
    """Add the options of the engine, with their defaults, to ``config``, the section ``role``, if they are missing.

    A configuration from a file has them; a program may pass a plain ``EngineConfig``.
    """
    for section in engine.config:
        if section.path == role:
            schema = load_target(section.schema, origin=engine.origin)
            if not isinstance(config, schema):
                config = upgrade(config, schema)
    return config
