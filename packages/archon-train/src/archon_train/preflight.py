"""Preflight: collects all obstacles of a run before it starts: layouts, cluster, packages, paths.

``plan_run`` is pure except for reading the file system (checkpoint folders, data files). It starts nothing and imports
no torch, so a laptop can check a layout for a hundred devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from archon_core.config.loading import LoadedConfig
from archon_core.contracts.data import DatasetSpec
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import TrainEngineSpec
from archon_core.contracts.engine_config import ROLES
from archon_core.contracts.launching import LauncherSpec, ProcessPlan
from archon_core.contracts.preview import RunOutline, RunPreview
from archon_core.contracts.rollout import InferenceEngineSpec
from archon_core.contracts.spec import Spec
from archon_core.contracts.train import AlgorithmSpec
from archon_core.errors import ArchonError, ConfigError, PluginError, UnknownNameError
from archon_core.layout import (
    BUILTIN_BACKENDS,
    Backend,
    Layout,
    backend_table,
)
from archon_core.plugins.inference_engines import inference_engines
from archon_core.plugins.reward_choice import choose_reward
from archon_core.plugins.workflow_choice import choose_workflow
from archon_core.serving.discovery import OPTION
from archon_train.cluster import EngineShare, check_cluster, cluster_shares, engine_backends, engine_layouts
from archon_train.engine_checks import EngineChecks
from archon_train.findings import Findings
from archon_train.local_files import file_problems
from archon_train.loggers.opening import logger_problems, unused_logger_options
from archon_train.model_sections import (
    missing_reward_model,
    missing_sections,
    unused_models,
)
from archon_train.process_plan import plan_processes
from archon_train.profile_plan import unused_profiler_options
from archon_train.recovery import restarts_without_checkpoints
from archon_train.run_plan import Need, RunPlan
from archon_train.run_services import plan_services
from archon_train.scheduling import (
    LOCAL,
    scheduling_specs,
    scheduling_strategies,
    strategy_problems,
    unused_scheduling,
)
from archon_train.server_checks import ServersFound, check_scoring_servers, check_servers
from archon_train.server_options import started_layouts, unused_registry, unused_registry_options
from archon_train.teacher_servers import TEACHER_SERVERS, explain_no_scorer, unused_teacher_options
from archon_train.used_options import without_unused
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
        self.samples = True
        self.launcher: Spec | None = None
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
        self.check_algorithm(algorithm)
        if self.config.scheduler.type != "local":
            self.launcher = self.look_up("launcher", self.config.scheduler.type, "scheduler.type")
        self.read_layouts()
        self.check_rollout(algorithm)
        self.check_scheduling(algorithm)
        self.check_launcher()
        engines = EngineChecks(self, self.config, self.layouts, self.loaded.explicit, samples=self.samples)
        for role in ROLES:
            if getattr(self.config, role) is not None:
                engines.check(role)
        self.engine_decisions += engines.decisions
        self.check_files()
        for text in logger_problems(self.config, self.registry):
            self.unable(text)
        self.decisions += unused_logger_options(self.config, self.registry, self.loaded.explicit)
        self.decisions += unused_profiler_options(self.config, self.loaded.explicit)
        self.decisions += restarts_without_checkpoints(self.config.trainer)

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
            if role != "actor" and "actor" not in self.layouts and backends[role] in ("", None, backends["actor"]):
                continue  # has the actor's layout, whose error is reported already
            try:
                # One role at a time, to find every error; an unreadable actor layout is reported already.
                actor = str(self.layouts.get("actor", "archon:d1"))
                self.layouts[role] = engine_layouts({"actor": actor, role: backends[role]}, backends=table)[role]
            except ArchonError as error:
                self.wrong(f"{error}{self.translated_from(role, backends[role])}")
        if "actor" in self.layouts:
            cluster = self.config.cluster
            started = started_layouts(self.layouts, self.config.rollout)
            strategies = scheduling_strategies(self.config, started)
            self.shares = cluster_shares(started, strategies)
            try:
                sizes = {"n_nodes": cluster.n_nodes, "n_gpus_per_node": cluster.n_gpus_per_node}
                specs = scheduling_specs(self.config, started)
                processes = plan_processes(check_cluster(started, strategies, **sizes), **sizes, scheduling=specs)
                n_ranks = len(processes.trainer.processes)
                services = tuple(plan_services(self.config, self.layouts, n_ranks))
                self.processes = replace(processes, services=services)
            except ArchonError as error:
                self.wrong(str(error))

    def check_scheduling(self, algorithm: Spec | None) -> None:
        """Check which engines share processes, and what those get."""
        known = algorithm if isinstance(algorithm, AlgorithmSpec) else None
        for text in strategy_problems(self.config, self.shares, known):
            self.wrong(text)
        name = self.config.scheduler.type
        if name == "local" or isinstance(self.launcher, LauncherSpec):
            used = self.launcher.scheduling if isinstance(self.launcher, LauncherSpec) else LOCAL
            self.decisions += unused_scheduling(self.config, self.shares, used, name, self.loaded.explicit)

    def translated_from(self, role: str, text: str | None) -> str:
        """The layout that the file has in place of ``text``, as a line of a message; empty if it is the same."""
        option = f"{role}.backend"
        made = (d for d in self.loaded.decisions if d.option == option and d.effective == text)
        return next((f"\n  the file has {d.requested!r}: {d.reason}" for d in made), "")

    def backends(self) -> Mapping[str, Backend]:
        """The engines that layouts may name: core's built-in table and installed engines."""
        try:
            return backend_table(self.registry.all(TrainEngineSpec), inference_engines(self.registry))
        except PluginError as error:
            self.unable(str(error))
            return BUILTIN_BACKENDS

    def check_rollout(self, algorithm: Spec | None) -> None:
        if not self.samples:
            self.decisions += unused_registry(self.config, self.loaded.explicit)
            return
        if algorithm is None and "rollout.backend" not in self.loaded.explicit:
            return  # an algorithm that is not installed may need no rollout
        rollout = self.layouts.get("rollout")
        transport = self.config.rollout.weight_transport
        known = transport is None or self.look_up("weight_transport", transport, "rollout.weight_transport")
        if rollout is not None:
            engine = self.look_up("inference_engine", rollout.backend, "rollout.backend")
            if isinstance(engine, InferenceEngineSpec) and not engine.runs_servers:
                self.decisions += unused_registry(self.config, self.loaded.explicit)
            elif isinstance(engine, InferenceEngineSpec) and known:
                self.check_registry()
                elsewhere = self.config.rollout.starts_servers and getattr(self.launcher, "starts_servers", False)
                self.add_servers(check_servers(self.config, rollout, self.registry, elsewhere=elsewhere))
        self.check_teacher()

    def check_launcher(self) -> None:
        """Ask the launcher about the run."""
        if not isinstance(self.launcher, LauncherSpec) or not self.launcher.check or not self.processes.parts:
            return
        try:
            check = self.launcher.load_part("check")
            found = check(self.config, plan=self.processes, explicit=self.loaded.explicit)
        except ArchonError as error:
            self.unable(f"scheduler.type: {error}")
            return
        for text in found.problems:
            self.wrong(text)
        for text in found.unable:
            self.unable(text)
        self.decisions += found.decisions

    def add_servers(self, found: ServersFound) -> None:
        self.obstacles += found.obstacles
        self.decisions += found.decisions
        for need in found.needs:
            for purpose in need.purposes:
                self.need(need.package, purpose)

    def check_registry(self) -> None:
        name = self.config.cluster.name_resolve.type
        registry = self.look_up("server_registry", name, OPTION)
        if registry is not None:
            self.decisions += unused_registry_options(self.config, registry.name, self.loaded.explicit)

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
        role = self.check_reward(config.reward) if self.samples and config.reward is not None else ""
        if self.samples and "workflow" in self.loaded.explicit:
            self.check_workflow(config.workflow)
        if not isinstance(algorithm, AlgorithmSpec):
            return
        for text in missing_sections(config, algorithm.name, algorithm.sections):
            self.wrong(text)
        models = [*unused_models(config, algorithm, role)]
        self.decisions += models
        unused = [decision.option for decision in models]
        if role and self.samples:
            for text in missing_reward_model(config, role):
                self.wrong(text)
        if algorithm.preview:
            found = dataset if isinstance(dataset, DatasetSpec) else None
            unused += self.preview_run(algorithm, RunOutline(config, algorithm, self.loaded.explicit, found, role))
        self.config = without_unused(config, unused)

    def preview_run(self, algorithm: AlgorithmSpec, outline: RunOutline) -> frozenset[str]:
        """Add the problems and decisions that the algorithm's preview finds; returns the unused options."""
        found: RunPreview | None = self.ask(algorithm, "preview", outline, option="algorithm")
        if found is None:
            return frozenset()
        for text in found.problems:
            self.wrong(text)
        for text in found.missing:
            # A file of another program may leave them to that program's script.
            self.unable(text) if self.loaded.dialects else self.wrong(text)
        self.decisions += found.decisions
        return found.unused

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

    def check_workflow(self, name: str) -> None:
        """Look up the plugin, or the function in the user's module, without importing it."""
        try:
            choose_workflow(name, self.registry)
        except (PluginError, UnknownNameError):
            self.look_up("workflow", name, "workflow")
        except ConfigError as error:
            self.wrong(str(error))

    def check_files(self) -> None:
        if not self.config.actor.path and self.config.actor.model_config is None:
            self.wrong(NO_MODEL)
        obstacles, notes = file_problems(self.config)
        self.obstacles += obstacles
        self.notes += notes
