"""The engines of a run, from a YAML file with overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import ROLES, EngineConfig
from archon_core.errors import ArchonError, ConfigError
from archon_core.layout import Layout
from archon_core.plugins import Registry
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_plan.models import KNOWN, NamedModel, find_model
from archon_plan.parts import EngineRequest, Sequences
from archon_plan.shared_prompts import with_prompts

LENGTH = 4096
"""Default of ``--seq``."""

CHARACTERS = 128
"""Assumed vocabulary of a tokenizer of characters: that of ASCII texts."""

_SCORING = ("critic", "reward_model")
"""Roles that a run gives a value head."""

_PLANNED = frozenset([*ROLES, "cluster", "rollout"])
"""Sections whose errors concern a plan."""


@dataclass(frozen=True)
class RunRequest:
    """The engines of a run.

    Attributes:
        engines: on ranks of the trainer, the actor first.
        rollout: layout of the rollout; ``None`` for a run that samples nothing, or a single engine.
        n_nodes: machines; 0 if unknown.
        devices_per_node: devices of each; 0 if unknown.
        config: the run's configuration; ``None`` for a single engine.
        decisions: options that the file's reading changed, or that have no effect.
        problems: errors of the configuration beyond those of layouts and engines.
        notes: what this machine lacks for the run, and assumptions; they do not prevent a plan.
        title: the file, or the model.
        hosts: role -> the role on whose ranks it runs, which may be itself.
        overrides: of the file, as written.
    """

    engines: tuple[EngineRequest, ...]
    rollout: Layout | None = None
    n_nodes: int = 0
    devices_per_node: int = 0
    config: Any = None
    decisions: tuple[Decision, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    title: str = ""
    hosts: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


def request_run(
    path: Path,
    overrides: Sequence[str],
    registry: Registry,
    *,
    model: str | None = None,
    seq: int | None = None,
    device: str | None = None,
) -> RunRequest:
    """The engines of a run that a YAML file describes, in Archon's or AReaL's dialect.

    Args:
        path: the file.
        overrides: ``name.of.option=value``; the last one wins.
        registry: the installed plugins.
        model: a name, a file or a folder to take in place of ``actor.path``.
        seq: length of all sequences; ``None`` takes the longest that the file allows.
        device: ``cuda`` or ``cpu``; ``None`` for what the file's cluster has.

    Raises:
        ConfigError: the file has errors, or the sizes of a model are unknown.
    """
    # Imported here: the commands that need no file start faster without these modules.
    from archon_train.cluster import engine_backends
    from archon_train.experiment import load_config
    from archon_train.model_sections import engine_section
    from archon_train.preflight import plan_run
    from archon_train.run_plan import install_commands

    loaded = load_config(path, overrides, registry, allow_missing=True)
    config, plan = loaded.config, plan_run(loaded, registry)
    valued = {d.option.partition(".")[0] for d in plan.decisions if d.option.endswith(".is_critic")}
    unused = {decision.option for decision in plan.decisions if decision.effective == "not used"}
    kind = device or ("cpu" if config.cluster.n_gpus_per_node == 0 else "cuda")
    layouts, lengths = engine_backends(config), _Lengths(config, registry, seq)
    engines, problems, notes = [], [], [*plan.notes]
    for role in ROLES:
        if role not in layouts or role in unused:
            continue
        section = engine_section(config, role)
        try:
            found = _model_of(role, section, config.actor, model)
        except ArchonError as error:
            problems.append(str(error))
            continue
        found, assumed = _with_vocabulary(found, config.tokenizer)
        notes += assumed
        if found.source == KNOWN:
            notes.append(f"{role}: the sizes of {found.name} come from the {KNOWN}")
        engines.append(
            EngineRequest(
                role=role,
                layout=layouts[role] or layouts["actor"] or "",
                model=found,
                config=lengths.in_pairs(_with_options(section, is_critic=role in _SCORING or role in valued)),
                sequences=lengths.of(role, section),
                explicit=loaded.explicit,
                option=f"{role}.backend",
                device=kind,
                entropy=lengths.samples and role == "actor",
                ranks_per_node=config.cluster.n_gpus_per_node or None,
            )
        )
    notes += lengths.notes
    notes += [f"this machine: {obstacle.text}" for obstacle in plan.obstacles if obstacle.kind == "environment"]
    commands = list(install_commands(plan.needs))
    notes += [f"a run also needs packages: {'; '.join(commands)}"] if commands else []
    for obstacle in plan.obstacles:
        if obstacle.kind == "config" and obstacle.text not in problems:
            section_name = re.split(r"[^a-z_]", obstacle.text, maxsplit=1)[0]
            if section_name in _PLANNED:
                problems.append(obstacle.text)
            else:
                notes.append(f"a run stops at: {obstacle.text}")
    return RunRequest(
        engines=tuple(engines),
        rollout=plan.layouts.get("rollout"),
        n_nodes=config.cluster.n_nodes,
        devices_per_node=config.cluster.n_gpus_per_node,
        config=config,
        decisions=(*loaded.decisions, *plan.decisions),
        problems=tuple(problems),
        notes=tuple(dict.fromkeys(notes)),
        title=str(path),
        hosts={share.role: share.hosted_by or share.role for share in plan.shares},
        overrides=tuple(overrides),
    )


def _model_of(role: str, section: EngineConfig, actor: EngineConfig, given: str | None) -> NamedModel:
    """The model of a section. Raises ConfigError, ModelError."""
    from archon_train.local_files import model_entries

    same = role == "actor" or (section.path, section.model_config) == (actor.path, actor.model_config)
    if given is not None and same:
        return find_model(given)
    if section.model_config is not None:
        return NamedModel(f"{role}.model_config", section.model_config, f"{role}.model_config")
    if not section.path:
        raise ConfigError(
            f"{role}.path: found neither {role}.path nor {role}.model_config; set one, or give the model by --model"
        )
    entries = model_entries(section)
    if entries:
        return NamedModel(section.path, entries, section.path)
    return find_model(section.path, option=f"{role}.path")


def _with_vocabulary(model: NamedModel, tokenizer: Any) -> tuple[NamedModel, list[str]]:
    """A model with the vocabulary of a tokenizer that a run builds from its data, if its entries leave it out."""
    if model.entries.get("vocab_size") is not None or tokenizer.kind == "pretrained":
        return model, []
    size, notes = tokenizer.vocab_size, []
    if tokenizer.kind == "characters":
        size = CHARACTERS
        notes.append(f"{model.source} has no vocab_size; {size} characters in the data are assumed")
    return replace(model, entries={**model.entries, "vocab_size": size}), notes


def _with_options(section: EngineConfig, *, is_critic: bool) -> ArchonEngineConfig:
    """The section with the Archon engine's options, which other engines' sections lack."""
    shared = {f.name: getattr(section, f.name) for f in fields(EngineConfig)}
    shared["is_critic"] = section.is_critic or is_critic
    return ArchonEngineConfig(**shared, archon=getattr(section, "archon", None) or ArchonOptions())


class _Lengths:
    """The sequences of a run's steps: as many as its options say, and as long as they allow.

    Attributes:
        samples: whether the run samples completions.
        notes: assumptions about lengths.
    """

    def __init__(self, config: Any, registry: Registry, seq: int | None) -> None:
        from archon_core.contracts.train import AlgorithmSpec

        self._config, self._seq = config, seq
        algorithms = {spec.name: spec for spec in registry.all(AlgorithmSpec)}
        algorithm = algorithms.get(config.algorithm)
        self.samples = algorithm is None or "inference_engine" in algorithm.needs
        self._answers = 2 if hasattr(config.data, "chosen_key") else 1
        self.notes: list[str] = []

    def in_pairs(self, section: ArchonEngineConfig) -> ArchonEngineConfig:
        """The section of a run on preferences, whose two answers to a prompt stay in one micro-batch."""
        if self._answers == 1:
            return section
        return replace(section, mb_spec=replace(section.mb_spec, granularity=self._answers))

    def of(self, role: str, section: EngineConfig) -> Sequences:
        """The sequences of one optimizer step, or of one pass of a model that is not trained."""
        sequences = self._sampled(section) if self.samples else self._written(role, section)
        if self._seq is None:
            return sequences
        # As in ``with_prompts``, at least one token is left for the completion.
        prompt = min(round(sequences.prompt * self._seq / sequences.length), self._seq - 1)
        return replace(sequences, length=self._seq, prompt=prompt)

    def _sampled(self, section: EngineConfig) -> Sequences:
        config, generation = self._config, self._config.gconfig
        prompt = config.data.max_length
        if prompt is None and generation.max_tokens is not None:
            prompt = max(generation.max_tokens - generation.max_new_tokens, 1)
        if prompt is None:
            prompt = 1024
            self._assume("data.max_length is null: prompts of 1,024 tokens are assumed; --seq sets the length")
        length = prompt + generation.max_new_tokens
        if generation.max_tokens is not None:
            length = min(length, generation.max_tokens)
        number = config.data.batch_size * generation.n_samples
        times = getattr(section, "ppo_n_minibatches", 1) if section.optimizer is not None else 1
        sequences = Sequences(-(-number // times), length, min(generation.max_new_tokens / length, 1.0))
        if not section.enable_tree_training:
            return sequences
        shared = max(length - generation.max_new_tokens, 0)
        return with_prompts(sequences, config.data.batch_size, generation.n_samples, shared)

    def _written(self, role: str, section: EngineConfig) -> Sequences:
        data = self._config.data
        length = data.max_length or section.mb_spec.max_tokens_per_mb or LENGTH
        if section.enable_tree_training:
            self.notes.append(
                f"{role}.enable_tree_training: which prefixes the sequences of the data share is not known; planned as "
                "if they shared none"
            )
        if data.max_length is None:
            self._assume(f"data.max_length is null: sequences of {length:,} tokens are assumed; --seq sets the length")
        return Sequences(data.batch_size * self._answers, length)

    def _assume(self, text: str) -> None:
        if self._seq is None and text not in self.notes:
            self.notes.append(text)
