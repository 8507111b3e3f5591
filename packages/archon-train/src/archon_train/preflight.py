"""Preflight: collects all obstacles of a run before it starts: layouts, cluster, packages, paths.

``plan_run`` is pure except for reading the file system (checkpoint folders, data files). It starts nothing and imports
no torch, so a laptop can check a layout for a hundred devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archon_core.config.loading import LoadedConfig
from archon_core.config.packages import missing_package
from archon_core.contracts.data import DatasetSpec
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import TrainEngineSpec
from archon_core.contracts.engine_config import ROLES, EngineConfig
from archon_core.contracts.model import ModelSpec
from archon_core.contracts.moe import MoESpec
from archon_core.contracts.pipeline import PIPELINE, PipelineSpec, ScheduleSpec
from archon_core.contracts.preview import EngineOutline, EnginePreview, RunOutline, RunPreview
from archon_core.contracts.rollout import InferenceEngineSpec
from archon_core.contracts.spec import Spec
from archon_core.contracts.train import AlgorithmSpec
from archon_core.errors import ArchonError, ConfigError, LayoutError, PluginError, UnknownNameError
from archon_core.layout import (
    BUILTIN_BACKENDS,
    Backend,
    Layout,
    backend_table,
    refuse_axes,
)
from archon_core.layout.diagnostics import count
from archon_core.plugins.clashes import explain_several_builders
from archon_core.plugins.first_party import PACKAGES
from archon_core.plugins.hints import package_for
from archon_core.plugins.inference_engines import inference_engines
from archon_core.plugins.reward_choice import choose_reward
from archon_core.selection import select_model
from archon_core.serving.discovery import OPTION, refuse_ray
from archon_train.cluster import EngineShare, check_cluster, cluster_shares, engine_backends, engine_layouts
from archon_train.findings import Findings
from archon_train.local_files import file_problems, model_entries, model_type_of
from archon_train.model_sections import (
    critic_problems,
    engine_section,
    missing_reward_model,
    missing_sections,
    stray_value_head,
    unused_models,
)
from archon_train.process_plan import ProcessPlan, plan_processes
from archon_train.run_plan import Need, RunPlan
from archon_train.server_checks import ServersFound, check_scoring_servers, check_servers
from archon_train.server_options import started_layouts, unused_registry
from archon_train.teacher_servers import TEACHER_SERVERS, explain_no_scorer, unused_teacher_options
from archon_train.vision import explain_visual

if TYPE_CHECKING:
    from archon_core.plugins import Registry

NO_MODEL = (
    "actor: found neither actor.path nor actor.model_config; set actor.path to a checkpoint folder or hub id, or write "
    "the model's config.json into actor.model_config"
)


def plan_run(loaded: LoadedConfig, registry: Registry) -> RunPlan:
    """The plan of a run of this configuration on this machine."""
    planner = _Planner(loaded, registry)
    planner.plan()
    return RunPlan(
        layouts=planner.layouts,
        shares=planner.shares,
        processes=planner.processes,
        needs=tuple(Need(package, tuple(purposes)) for package, purposes in planner.needs.items()),
        obstacles=tuple(dict.fromkeys(planner.obstacles)),
        notes=tuple(planner.notes),
        decisions=tuple(planner.decisions),
        engine_decisions=tuple(planner.engine_decisions),
    )


class _Planner(Findings):
    def __init__(self, loaded: LoadedConfig, registry: Registry) -> None:
        super().__init__(registry)
        self.config = loaded.config
        self.loaded = loaded
        self.layouts: dict[str, Layout] = {}
        self.shares: tuple[EngineShare, ...] = ()
        self.processes = ProcessPlan()
        self.decisions: list[Decision] = []
        self.engine_decisions: list[Decision] = []
        self.models: dict[str, ModelSpec | None] = {}
        self.samples = True
        self.notes: list[str] = [f"not read: {warning}" for warning in loaded.warnings]

    def plan(self) -> None:
        problem = self.why_nothing_to_train()
        if problem is not None:
            self.wrong(problem)  # other obstacles would only follow from it
            return
        for option in self.loaded.missing:
            self.need(option.package, option.option)
        algorithm = self.look_up("algorithm", self.config.algorithm, "algorithm")
        self.samples = algorithm is None or "inference_engine" in getattr(algorithm, "needs", ())
        self.read_layouts()
        self.check_rollout()
        self.check_algorithm(algorithm)
        if self.config.scheduler.type != "local":
            self.look_up("launcher", self.config.scheduler.type, "scheduler.type")
        for role in ROLES:
            if getattr(self.config, role) is not None:
                self.check_engine(role)
        self.check_files()

    def why_nothing_to_train(self) -> str | None:
        """The problem of a run without a model, or on images, which no other option or package can solve."""
        if not any(option.partition(".")[0] == "actor" for option in self.loaded.explicit):
            return NO_MODEL
        config = self.config
        models = [(f"{role}.path", getattr(getattr(config, role), "path", None) or "") for role in ROLES]
        datasets = [(f"data.{name}", getattr(config.data, name) or "") for name in ("path", "validation_path")]
        return explain_visual(models, datasets)

    def read_layouts(self) -> None:
        table, backends = self.backends(), engine_backends(self.config)
        if not self.samples:
            backends.pop("rollout", None)
        for role in ["actor", *(other for other in backends if other != "actor")]:
            if role != "actor" and "actor" not in self.layouts and not backends[role]:
                continue  # inherits the actor's layout, whose error is reported already
            try:
                # One role at a time, to find every error; an unreadable actor layout is reported already.
                actor = str(self.layouts.get("actor", "archon:d1"))
                self.layouts[role] = engine_layouts({"actor": actor, role: backends[role]}, backends=table)[role]
            except ArchonError as error:
                self.wrong(str(error))
        if "actor" in self.layouts:
            cluster = self.config.cluster
            started = started_layouts(self.layouts, self.config.rollout)
            self.shares = cluster_shares(started)
            try:
                sizes = {"n_nodes": cluster.n_nodes, "n_gpus_per_node": cluster.n_gpus_per_node}
                self.processes = plan_processes(check_cluster(started, **sizes), **sizes)
            except ArchonError as error:
                self.wrong(str(error))

    def backends(self) -> Mapping[str, Backend]:
        """The engines that layouts may name: core's built-in table and installed engines."""
        try:
            return backend_table(self.registry.all(TrainEngineSpec), inference_engines(self.registry))
        except PluginError as error:
            self.unable(str(error))
            return BUILTIN_BACKENDS

    def check_rollout(self) -> None:
        if not self.samples:
            self.decisions += unused_registry(self.loaded.explicit)
            return
        rollout = self.layouts.get("rollout")
        transport = self.config.rollout.weight_transport
        known = transport is None or self.look_up("weight_transport", transport, "rollout.weight_transport")
        if rollout is not None:
            engine = self.look_up("inference_engine", rollout.backend, "rollout.backend")
            if isinstance(engine, InferenceEngineSpec) and not engine.runs_servers:
                self.decisions += unused_registry(self.loaded.explicit)
            elif isinstance(engine, InferenceEngineSpec) and known:
                self.check_registry()
                self.add_servers(check_servers(self.config, rollout, self.registry))
        self.check_teacher()

    def add_servers(self, found: ServersFound) -> None:
        self.obstacles += found.obstacles
        self.decisions += found.decisions
        for need in found.needs:
            self.needs.setdefault(need.package, []).extend(need.purposes)

    def check_registry(self) -> None:
        name = self.config.cluster.name_resolve.type
        try:
            refuse_ray(name, self.registry)
        except ConfigError as error:
            self.unable(str(error))
            return
        self.look_up("server_registry", name, OPTION)

    def check_teacher(self) -> None:
        """Check that the servers of a teacher can score."""
        self.decisions += unused_teacher_options(self.config, self.loaded.explicit)
        layout = self.layouts.get(TEACHER_SERVERS)
        if layout is None:
            return
        engine = self.look_up("inference_engine", layout.backend, f"{TEACHER_SERVERS}.backend")
        if isinstance(engine, InferenceEngineSpec) and not engine.scorer:
            self.wrong(explain_no_scorer(layout))
        elif isinstance(engine, InferenceEngineSpec) and engine.runs_servers:
            self.add_servers(check_scoring_servers(self.config, layout, self.registry, option=TEACHER_SERVERS))

    def check_algorithm(self, algorithm: Spec | None) -> None:
        config = self.config
        dataset = self.look_up("dataset", config.data.dataset, "data.dataset")
        role = "" if config.reward is None else self.check_reward(config.reward)
        if not isinstance(algorithm, AlgorithmSpec):
            return
        for text in missing_sections(config, algorithm.name, algorithm.sections):
            self.wrong(text)
        self.decisions += unused_models(config, algorithm, role)
        if role and self.samples:
            for text in missing_reward_model(config, role):
                self.wrong(text)
        if algorithm.preview:
            found = dataset if isinstance(dataset, DatasetSpec) else None
            self.preview_run(algorithm, RunOutline(config, algorithm, self.loaded.explicit, found, role))

    def ask(self, spec: AlgorithmSpec | TrainEngineSpec, outline: RunOutline | EngineOutline, option: str) -> Any:
        """What the preview of ``spec`` answers; ``None`` if it cannot be loaded."""
        try:
            return spec.load_part("preview")(outline)
        except PluginError as error:
            self.unable(f"{option}: {error}")
            return None

    def preview_run(self, algorithm: AlgorithmSpec, outline: RunOutline) -> None:
        """Add the problems and decisions that the algorithm's preview finds."""
        found: RunPreview | None = self.ask(algorithm, outline, "algorithm")
        if found is None:
            return
        for text in found.problems:
            self.wrong(text)
        for text in found.missing:
            # A file of another program may leave them to that program's script.
            self.unable(text) if self.loaded.dialects else self.wrong(text)
        self.decisions += found.decisions

    def check_reward(self, name: str) -> str | None:
        """Look up the plugin, or the function in the user's module, without importing it.

        Returns:
            The section of the model that the reward runs, empty for none; ``None`` if the reward is unknown.
        """
        try:
            return getattr(choose_reward(name, self.registry), "role", "")
        except (PluginError, UnknownNameError):
            self.look_up("reward", name, "reward")
        except ConfigError as error:
            self.wrong(str(error))
        return None

    def check_engine(self, role: str) -> None:
        config, layout = engine_section(self.config, role), self.layouts.get(role)
        if layout is None:
            return
        option = f"{role}.backend"
        engine = self.look_up("train_engine", layout.backend, option)
        if config.backend:  # an inherited layout is checked for the role that sets it
            if isinstance(engine, TrainEngineSpec):
                try:
                    refuse_axes(layout, engine.axes, option=option)
                except LayoutError as error:
                    self.unable(str(error))
            self.check_shares_ranks(role, layout)
        if not isinstance(engine, TrainEngineSpec):
            return
        # An error about the actor's model is not repeated for the models that start from its weights.
        inherits = getattr(config, "path", None) == self.config.actor.path and role in ("critic", "ref")
        if not inherits or self.models.get("actor") is not None:
            self.models[role] = self.check_model(role, config, layout, engine)
        model = self.models.get(role)
        for text in stray_value_head(role, config, samples=self.samples):
            self.wrong(text)
        if role == "critic":
            for text in critic_problems(config, model, self.loaded.explicit):
                self.wrong(text)
        schedule, pipeline = self.check_pipeline(role, config, layout, engine)
        self.check_experts(role, config, layout, engine, model)
        if engine.preview:
            outline = EngineOutline(
                config,
                role,
                self.loaded.explicit,
                layout,
                model,
                schedule,
                pipeline,
                model_entries(config),
                self.config.rollout if self.samples else None,
            )
            self.preview(engine, outline)

    def preview(self, engine: TrainEngineSpec, outline: EngineOutline) -> None:
        """Add the problems and decisions that the engine's own preview finds."""
        found: EnginePreview | None = self.ask(engine, outline, f"{outline.role}.backend")
        if found is None:
            return
        for text in found.problems:
            self.wrong(text)
        self.engine_decisions += found.decisions

    def check_pipeline(
        self, role: str, config: EngineConfig, layout: Layout, engine: TrainEngineSpec
    ) -> tuple[ScheduleSpec | None, PipelineSpec | None]:
        """The schedule and the pipeline plugin of a layout with stages."""
        name, option = engine.asked(config, "schedule"), engine.option("schedule", role)
        if layout.dims["p"] == 1 or name is None or option is None:
            return None, None
        schedule = self.look_up("schedule", name, option)
        if not isinstance(schedule, ScheduleSpec):
            return None, None
        try:
            return schedule, self.registry.get(PipelineSpec, PIPELINE)
        except PluginError as error:
            self.unable(f"{role}.backend: {error}")
        except UnknownNameError:
            package = next(iter(PACKAGES["pipeline"]))
            self.need(missing_package(package, self.registry), f"the stages of {layout}")
        return schedule, None

    def check_shares_ranks(self, role: str, layout: Layout) -> None:
        actor = self.layouts.get("actor")
        if actor is not None and layout.world_size != actor.world_size:
            self.unable(
                f"{role}.backend: found {layout}, on {count(layout.world_size, 'rank')}; this version runs every model "
                f"on the ranks of the actor ({actor}, on {count(actor.world_size, 'rank')}); choose a layout of "
                f"{count(actor.world_size, 'rank')}, or leave {role}.backend out to inherit the actor's"
            )

    def check_experts(
        self, role: str, config: EngineConfig, layout: Layout, engine: TrainEngineSpec, model: ModelSpec | None
    ) -> None:
        """Check that a plugin builds the experts, and that the expert options are valid."""
        has_experts = None if model is None else "moe" in model.needs
        installed = self.registry.all(MoESpec)
        needed = has_experts or layout.ep > 1 or (layout.etp or 1) > 1
        asked, option = engine.asked(config, "moe"), engine.option("moe", role)
        if asked is not None and option is not None and needed:
            chosen = self.look_up("moe", asked, option)
        elif needed and not installed:
            package = next(iter(PACKAGES["moe"]))
            self.need(missing_package(package, self.registry), "the experts of " + str(self.layouts[role]))
            return
        elif needed and len(installed) > 1:
            self.wrong(explain_several_builders([spec.name for spec in installed], option))
            return
        else:
            chosen = next((spec for spec in installed if asked in (None, spec.name)), None)
        if isinstance(chosen, MoESpec) and chosen.check:
            try:
                check = chosen.load_part("check")
            except PluginError as error:
                self.unable(str(error))
                return
            for text in check(config, role=role, explicit=self.loaded.explicit, has_experts=has_experts):
                self.wrong(text)

    def check_model(self, role: str, config: EngineConfig, layout: Layout, engine: TrainEngineSpec) -> ModelSpec | None:
        """The model spec, if the model type is known locally."""
        model_type = model_type_of(config)
        if model_type is None or not engine.model_type:
            return None
        option = f"{role}.path" if config.path else f"{role}.model_config"
        try:
            spec = select_model(config, engine, self.registry, model_type=model_type, role=role)
        except ConfigError as error:
            self.wrong(str(error))
            return None
        except ArchonError as error:
            name = engine.model or engine.asked(config, "model")
            wanted, option = (model_type, option) if name is None else (name, engine.option("model", role) or option)
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

    def check_files(self) -> None:
        if not self.config.actor.path and self.config.actor.model_config is None:
            self.wrong(NO_MODEL)
        obstacles, notes = file_problems(self.config)
        self.obstacles += obstacles
        self.notes += notes
