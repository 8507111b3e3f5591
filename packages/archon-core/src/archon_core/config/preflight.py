"""Everything that would stop a run, found before anything starts: layouts, the cluster, packages, paths.

``plan_run`` is pure but for two looks at the file system (is there a checkpoint folder, a data file). It starts
nothing and imports no torch, so that a layout for a hundred devices can be checked on a laptop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archon_core.config.combinations import changes, refusals, refuse_when_strict
from archon_core.config.decisions import Decision
from archon_core.config.loading import LoadedConfig
from archon_core.config.packages import MissingPackage, missing_package
from archon_core.config.pipelines import count_stages, micro_batch_decisions
from archon_core.config.run_plan import Need, Obstacle, RunPlan
from archon_core.config.schema import EngineConfig
from archon_core.config.sections import ROLES
from archon_core.config.situation import Situation
from archon_core.errors import ArchonError, ConfigError, LayoutError, PluginError, UnknownNameError
from archon_core.layout import (
    BUILTIN_BACKENDS,
    Backend,
    EngineShare,
    Layout,
    backend_table,
    check_cluster,
    cluster_shares,
    engine_backends,
    engine_layouts,
    refuse_axes,
)
from archon_core.layout.diagnostics import count
from archon_core.layout.model_sizes import ShardedExtents, check_sizes
from archon_core.models.end_tokens import config_ends, folder_ends
from archon_core.pipeline import PIPELINE
from archon_core.plugins.clashes import explain_several_builders
from archon_core.plugins.hints import PACKAGES, package_for
from archon_core.plugins.specs import (
    InferenceEngineSpec,
    ModelSpec,
    MoESpec,
    PipelineSpec,
    ScheduleSpec,
    Spec,
    TrainEngineSpec,
    load_target,
)

if TYPE_CHECKING:
    from archon_core.plugins import Registry

OUR_ENGINE = "archon"
"""Engines of plugins have pipelines of their own."""

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def plan_run(loaded: LoadedConfig, registry: Registry) -> RunPlan:
    """Collect everything that stops a run of this configuration on this machine."""
    planner = _Planner(loaded, registry)
    planner.plan()
    return RunPlan(
        layouts=planner.layouts,
        shares=planner.shares,
        needs=tuple(Need(package, tuple(purposes)) for package, purposes in planner.needs.items()),
        obstacles=tuple(dict.fromkeys(planner.obstacles)),
        notes=tuple(planner.notes),
        decisions=tuple(planner.decisions),
    )


class _Planner:
    def __init__(self, loaded: LoadedConfig, registry: Registry) -> None:
        self.config = loaded.config
        self.loaded = loaded
        self.registry = registry
        self.layouts: dict[str, Layout] = {}
        self.shares: tuple[EngineShare, ...] = ()
        self.needs: dict[MissingPackage, list[str]] = {}
        self.obstacles: list[Obstacle] = []
        self.decisions: list[Decision] = []
        self.schedules: dict[str, ScheduleSpec] = {}
        self.stages: dict[str, int] = {}
        self.samples = True
        self.notes: list[str] = [f"not read: {warning}" for warning in loaded.warnings]

    def plan(self) -> None:
        for option in self.loaded.missing:
            self.need(option.package, option.option)
        self.read_layouts()
        self.check_algorithm()
        if self.config.scheduler.type != "local":
            self.look_up("launcher", self.config.scheduler.type, "scheduler.type")
        for role in ROLES:
            if getattr(self.config, role) is not None:
                self.check_engine(role)
                self.check_options(role)
        self.check_paths()

    def read_layouts(self) -> None:
        table, backends = self.backends(), engine_backends(self.config)
        for role in ["actor", *(other for other in backends if other != "actor")]:
            if role != "actor" and "actor" not in self.layouts and not backends[role]:
                continue  # it inherits the actor's, which is reported already
            try:
                # One by one, so that every mistake is found; an actor that cannot be read is reported already.
                actor = str(self.layouts.get("actor", "archon:d1"))
                self.layouts[role] = engine_layouts({"actor": actor, role: backends[role]}, backends=table)[role]
            except ArchonError as error:
                self.wrong(str(error))
        if "actor" in self.layouts:
            cluster = self.config.cluster
            self.shares = cluster_shares(self.layouts)
            try:
                check_cluster(self.layouts, n_nodes=cluster.n_nodes, n_gpus_per_node=cluster.n_gpus_per_node)
            except ArchonError as error:
                self.wrong(str(error))

    def backends(self) -> Mapping[str, Backend]:
        """The engines that layouts may name: those that core knows of, and those that are installed."""
        try:
            return backend_table(self.registry.all(TrainEngineSpec), self.registry.all(InferenceEngineSpec))
        except PluginError as error:
            self.unable(str(error))
            return BUILTIN_BACKENDS

    def check_algorithm(self) -> None:
        config = self.config
        algorithm = self.look_up("algorithm", config.algorithm, "algorithm")
        self.look_up("dataset", config.data.dataset, "data.dataset")
        if config.reward is not None:
            self.look_up("reward", config.reward, "reward")
        rollout = self.layouts.get("rollout")
        needed = algorithm is not None and "inference_engine" in getattr(algorithm, "needs", ())
        self.samples = algorithm is None or needed
        if rollout is not None and (needed or "rollout.backend" in self.loaded.explicit):
            self.look_up("inference_engine", rollout.backend, "rollout.backend")

    def check_engine(self, role: str) -> None:
        config, layout = getattr(self.config, role), self.layouts.get(role)
        if layout is None:
            return
        option = f"{role}.backend"
        spec = self.look_up("train_engine", layout.backend, option)
        model = self.check_model(role, config, layout, spec) if isinstance(spec, TrainEngineSpec) else None
        if layout.dims["p"] > 1 and layout.backend == OUR_ENGINE:
            self.check_pipeline(role, config, layout)
        if config.backend:  # an inherited layout is checked where it is written
            if isinstance(spec, TrainEngineSpec):
                try:
                    refuse_axes(layout, spec.axes, option=option)
                except LayoutError as error:
                    self.unable(str(error))
            self.check_shares_ranks(role, layout)
        if model is not None and layout.backend == OUR_ENGINE:
            self.check_heads(role, config, layout)
        self.check_experts(role, config, layout, model)
        if isinstance(spec, TrainEngineSpec) and spec.check:
            for text in self.ask(spec, spec.check, config, role):
                self.unable(text)

    def ask(self, spec: Spec, check: str, config: EngineConfig, role: str, **fields: Any) -> list[str]:
        """What a plugin's own check finds."""
        try:
            found = load_target(check, origin=spec.origin)
        except PluginError as error:
            self.unable(str(error))
            return []
        return list(found(config, role=role, explicit=self.loaded.explicit, **fields))

    def check_heads(self, role: str, config: EngineConfig, layout: Layout) -> None:
        """That tensor and context ranks can share the attention heads; the engine looks at the other sizes, too."""
        n_heads = _model_entries(config).get("num_attention_heads")
        if isinstance(n_heads, int) and n_heads > 0:
            try:
                check_sizes(ShardedExtents({"attention heads": n_heads}, n_heads), layout, option=f"{role}.backend")
            except LayoutError as error:
                self.wrong(str(error))

    def check_pipeline(self, role: str, config: EngineConfig, layout: Layout) -> None:
        """That there are a schedule and what runs it, and as many layers as stages need."""
        schedule = self.look_up("schedule", config.archon.pp_schedule, f"{role}.archon.pp_schedule")
        if not isinstance(schedule, ScheduleSpec):
            return
        self.schedules[role] = schedule
        try:
            pipeline = self.registry.get(PipelineSpec, PIPELINE)
            n_layers, n_ranks = _model_entries(config).get("num_hidden_layers"), layout.dims["p"]
            if isinstance(n_layers, int):
                fields = {"schedule": schedule, "n_ranks": n_ranks, "options": config.archon, "role": role}
                self.stages[role] = count_stages(pipeline, n_layers, **fields)
        except PluginError as error:
            self.unable(f"{role}.backend: {error}")
        except UnknownNameError:
            package = next(iter(PACKAGES["pipeline"]))
            self.need(missing_package(package, self.registry), f"the stages of {layout}")
        except (ConfigError, LayoutError) as error:
            self.wrong(str(error))

    def check_options(self, role: str) -> None:
        config, layout = getattr(self.config, role), self.layouts.get(role)
        situation = Situation.of(
            config,
            role,
            self.loaded.explicit,
            pipeline_ranks=None if layout is None else layout.dims["p"],
            schedule=self.schedules.get(role),
        )
        for option, text in refusals(situation):
            self.wrong(f"{role}.{option}: {text}")
        if config.archon.moe_routing_replay and not self.samples:
            self.wrong(
                f"{role}.archon.moe_routing_replay: found true with algorithm {self.config.algorithm!r}, which samples "
                "no completions whose experts could be taken; set it to false"
            )
        elif config.archon.moe_routing_replay and not self.config.rollout.return_routed_experts:
            self.wrong(
                f"{role}.archon.moe_routing_replay: found true and rollout.return_routed_experts=false; there "
                "would be nothing to replay: set rollout.return_routed_experts=true too"
            )
        _, decisions = changes(situation, role=role)
        if layout is not None and role in self.stages:
            decisions += micro_batch_decisions(
                config.mb_spec,
                self.schedules[role],
                n_ranks=layout.dims["p"],
                n_stages=self.stages[role],
                role=role,
            )
        self.decisions += decisions
        if config.archon.strict and (refusal := refuse_when_strict(decisions, role=role)):
            self.wrong(refusal)

    def check_shares_ranks(self, role: str, layout: Layout) -> None:
        actor = self.layouts.get("actor")
        if actor is not None and layout.world_size != actor.world_size:
            self.unable(
                f"{role}.backend: found {layout}, on {count(layout.world_size, 'rank')}; this version runs every model "
                f"on the ranks of the actor, which {actor} has {actor.world_size} of; choose a layout of "
                f"{count(actor.world_size, 'rank')}, or leave {role}.backend out to take the actor's"
            )

    def check_experts(self, role: str, config: EngineConfig, layout: Layout, model: ModelSpec | None) -> None:
        """That someone builds the experts, and what is asked of them; of a dense model nothing may be."""
        has_experts = None if model is None else "moe" in model.needs
        if has_experts is False and config.archon.moe_routing_replay:
            self.wrong(
                f"{role}.archon.moe_routing_replay: found true; model {model.name!r} has no experts that tokens could "
                "go to; set it to false"
            )
        installed = self.registry.all(MoESpec)
        needed = has_experts or layout.ep > 1 or (layout.etp or 1) > 1
        if config.archon.moe is not None and needed:
            chosen = self.look_up("moe", config.archon.moe, f"{role}.archon.moe")
        elif needed and not installed:
            package = next(iter(PACKAGES["moe"]))
            self.need(missing_package(package, self.registry), "the experts of " + str(self.layouts[role]))
            return
        elif needed and len(installed) > 1:
            self.wrong(explain_several_builders([spec.name for spec in installed], role))
            return
        else:
            chosen = next((spec for spec in installed if config.archon.moe in (None, spec.name)), None)
        if isinstance(chosen, MoESpec) and chosen.check:
            for text in self.ask(chosen, chosen.check, config, role, has_experts=has_experts):
                self.wrong(text)

    def check_model(self, role: str, config: Any, layout: Layout, engine: TrainEngineSpec) -> ModelSpec | None:
        """The architecture, when the checkpoint is here to tell it."""
        model_type = _model_type(config)
        if model_type is None:
            return None
        option = f"{role}.path" if config.path else f"{role}.model_config"
        try:
            name = engine.chosen_model(config.archon.model, option=f"{role}.archon.model")
            spec = self.registry.model_for(model_type, name)
        except ConfigError as error:
            self.wrong(str(error))
            return None
        except ArchonError as error:
            wanted, option = (model_type, option) if name is None else (name, f"{role}.archon.model")
            package = package_for("model", wanted)
            if package is None or isinstance(error, PluginError):
                self.unable(f"{option}: {error}")
            else:
                self.need(missing_package(package, self.registry), f"{option}: {wanted}")
            return None
        try:
            layout.parallel_dims(moe="moe" in spec.needs, option=f"{role}.backend")
        except LayoutError as error:
            self.wrong(str(error))
        return spec

    def check_paths(self) -> None:
        actor = self.config.actor
        if not actor.path and actor.model_config is None:
            self.wrong(
                "actor: found neither a path nor a model_config; set actor.path to a checkpoint folder or a hub id, or "
                "write the model's config.json into actor.model_config"
            )
        self.check_end_tokens(actor)
        seen: set[str] = set()
        for role in ROLES:
            path = getattr(getattr(self.config, role), "path", None)
            if not path or path in seen:
                continue
            seen.add(path)
            if not _is_folder(path):
                self.not_here(f"{role}.path", path)
        data = self.config.data.path
        if data and _is_local(data) and not _is_there(data):
            self.unable(f"data.path: found no file or folder {data!r}; give an existing one")

    def check_end_tokens(self, actor: EngineConfig) -> None:
        """That the model's list of tokens that end a completion can be read, where its files are here."""
        try:
            if actor.model_config is not None:
                config_ends(actor.model_config, "actor.model_config")
            elif actor.path and _is_folder(actor.path):
                folder_ends(Path(actor.path).expanduser())
        except ArchonError as error:
            self.wrong(str(error))

    def not_here(self, option: str, path: str) -> None:
        if _is_local(path) or not HUB_ID.fullmatch(path):
            self.unable(f"{option}: found no folder {path!r}; give a checkpoint folder or a hub id (owner/name)")
        else:
            self.notes.append(
                f"{option}: {path} is no folder here; it is fetched from the hub unless it is in its cache"
            )

    def look_up(self, kind: str, name: str, option: str) -> Spec | None:
        try:
            return self.registry.get(kind, name)
        except PluginError as error:  # two plugins provide it: no package is missing
            self.unable(f"{option}: {error}")
            return None
        except ArchonError as error:
            package = package_for(kind, name)
            if package is None:
                self.wrong(f"{option}: {error}")
            else:
                self.need(missing_package(package, self.registry), f"{option}: {name}")
            return None

    def need(self, package: MissingPackage, purpose: str) -> None:
        purposes = self.needs.setdefault(package, [])
        if purpose not in purposes:
            purposes.append(purpose)

    def wrong(self, text: str) -> None:
        self.obstacles.append(Obstacle(text, "config"))

    def unable(self, text: str) -> None:
        self.obstacles.append(Obstacle(text, "environment"))


def _is_folder(path: str) -> bool:
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # no right to look, an unknown user's home, a NUL character
        return False


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _is_local(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or path.count("/") > 1 or path.endswith((".jsonl", ".json"))


def _model_entries(config: EngineConfig) -> Mapping[str, Any]:
    """The model's ``config.json``, as far as it is here."""
    entries = config.model_config
    if entries is None and config.path:
        try:
            entries = json.loads((Path(config.path).expanduser() / "config.json").read_text(encoding="utf-8"))
        except (OSError, RuntimeError, ValueError):
            return {}  # not here, or damaged: whoever loads it says so
    return entries if isinstance(entries, dict) else {}


def _model_type(config: EngineConfig) -> str | None:
    model_type = _model_entries(config).get("model_type")
    return model_type if isinstance(model_type, str) else None
