"""Builds the engines of a run from its configuration, through the registry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from archon_core import assemble
from archon_core.contracts.adapters import AdapterSpec
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.rollout import InferenceEngine
from archon_core.errors import ConfigError
from archon_core.layout import Layout, backend_table
from archon_core.plugins import TrainEngineSpec, registry
from archon_core.plugins.inference_engines import find_inference_engine, inference_engines
from archon_core.serving.discovery import Discovery
from archon_engine.models.hf_config import load_hf_config
from archon_rl.trainer.sharing import SharedEngine
from archon_train.cluster import engine_backends, engine_layouts
from archon_train.model_sections import with_initial_weights
from archon_train.run.context import RunContext

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
VOCABULARY_MULTIPLE = 64
"""A vocabulary size that Archon chooses is rounded up to a multiple of this, for efficient matrix products."""


def build_train_engine(run: RunContext, config: Any, *, role: str, total_steps: int | None) -> TrainEngine:
    """The engine of ``config.backend`` with its weights. Adds its decisions to those of the run."""
    engine = assemble(
        config,
        role=role,
        layout=engine_layout(run, role),
        seed=run.config.seed,
        total_steps=total_steps,
        explicit=run.explicit,
    )
    engine.initialize()
    run.record(engine.decisions)
    return engine


def build_model_beside(run: RunContext, section: Any, *, role: str, total_steps: int | None) -> SharedEngine:
    """A model beside the actor, in host memory while it is idle if ``offload`` or ``enable_offload`` says so.

    Args:
        run: the run.
        section: the complete section of the model.
        role: the section's name.
        total_steps: optimizer steps of the run; ``None`` for a frozen model.
    """
    engine = build_train_engine(run, section, role=role, total_steps=total_steps)
    offloads = run.config.enable_offload or getattr(section, "offload", False)
    if offloads:
        engine.offload()
    return SharedEngine(
        engine,
        section.mb_spec.granularity,
        run.recordings,
        offloads,
        shares_prefixes=section.enable_tree_training,
    )


def build_inference_engine(run: RunContext, trainer: TrainEngine, **changes: Any) -> InferenceEngine:
    """The engine that ``rollout.backend`` names, with ``changes`` to the other options of ``rollout``."""
    layout, config = engine_layout(run, "rollout"), replace(run.config.rollout, **changes)
    factory = find_inference_engine(registry(), layout.backend).load()
    if layout.on_trainer_ranks:
        return factory(config, trainer=trainer)
    options = getattr(run.config, layout.backend, None)
    folder, discovery = run.folder.path / "servers", Discovery.of(run.config)
    engine = factory(
        config,
        trainer=trainer,
        folder=folder,
        options=options,
        discovery=discovery,
        stop=lambda: run.stop.requested,
    )
    run.record(getattr(engine, "decisions", ()))
    return engine


def engine_layout(run: RunContext, role: str) -> Layout:
    """The layout of one engine of the run; an empty one is the actor's."""
    plugins = registry()
    table = backend_table(plugins.all(TrainEngineSpec), inference_engines(plugins))
    backends = engine_backends(run.config)
    needed = {name: backends[name] for name in ("actor", role)}  # others may be of models that the run does not have
    return engine_layouts(needed, backends=table)[role]


def complete_model_config(run: RunContext, tokenizer: Any, role: str = "actor") -> Any:
    """The section ``role`` with an inline ``model_config`` completed from the tokenizer: vocabulary size and special
    token ids.

    Raises:
        ConfigError: the given vocabulary is smaller than the tokenizer's.
    """
    section = getattr(run.config, role)
    if section.model_config is None:
        if section.init_from_scratch and section.path:
            _check_vocabulary(
                f"the model of {role}.path={section.path!r}", load_hf_config(section.path).vocab_size, tokenizer
            )
        return section
    decisions: list[Decision] = []
    model = dict(section.model_config)
    n_tokens = len(tokenizer)
    if model.get("vocab_size") is None:
        model["vocab_size"] = -(-n_tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        decisions.append(
            Decision(
                option=f"{role}.model_config.vocab_size",
                requested="not given",
                effective=str(model["vocab_size"]),
                reason=f"the tokenizer has {n_tokens} tokens; rounded up to a multiple of {VOCABULARY_MULTIPLE}",
            )
        )
    else:
        _check_vocabulary(f"{role}.model_config", model["vocab_size"], tokenizer)
    special = {name: getattr(tokenizer, name) for name in SPECIAL_IDS if model.get(name) is None}
    if special:
        model |= special
        decisions.append(
            Decision(
                option=f"{role}.model_config",
                requested=f"no {', '.join(special)}",
                effective=", ".join(f"{name}={value}" for name, value in special.items()),
                reason="taken from the tokenizer, for the exported model",
            )
        )
    run.record(decisions)
    return replace(section, model_config=model)


def _check_vocabulary(where: str, vocab_size: int, tokenizer: Any) -> None:
    if vocab_size < len(tokenizer):
        raise ConfigError(
            f"{where}: found vocab_size {vocab_size}; allowed is at least {len(tokenizer)}, the size of the tokenizer; "
            "raise it, leave it out of model_config, or choose a smaller tokenizer"
        )


def with_checkpoint(section: Any, checkpoint: Path) -> Any:
    """A model's section with the weights of ``checkpoint``."""
    return replace(section, path=str(checkpoint), init_from_scratch=False, model_config=None)


def whole_model(section: Any) -> Any:
    """A model's section with its adapters switched off, so that all of its weights are trained."""
    options = [spec.option for spec in registry().all(AdapterSpec)]
    return replace(section, **{option: False for option in options if getattr(section, option, False)})


def with_single_sequences(section: Any) -> Any:
    """A model's section for batches of single sequences, where ``mb_spec.granularity`` keeps none together."""
    return replace(section, mb_spec=replace(section.mb_spec, granularity=1))


def critic_config(critic: Any, actor: Any) -> Any:
    """The ``critic`` section, with a value head, on the actor's initial weights unless it names others."""
    return replace(with_initial_weights(critic, actor), is_critic=True)


def reference_config(ref: Any, actor: Any) -> Any:
    """The ``ref`` section, with the actor's initial weights unless it names others, and without an optimizer."""
    return replace(with_initial_weights(ref, actor), optimizer=None)
