"""What a dry run checks of the training engine of each role: axes, model, value head, pipeline, experts, adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archon_core.config.packages import missing_package
from archon_core.contracts.adapters import AdapterSpec
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import TrainEngineSpec
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.model import ModelSpec
from archon_core.contracts.moe import MoESpec
from archon_core.contracts.pipeline import PIPELINE, PipelineSpec, ScheduleSpec
from archon_core.contracts.preview import EngineOutline, EnginePreview
from archon_core.errors import ArchonError, ConfigError, LayoutError, PluginError, UnknownNameError
from archon_core.layout import Layout, refuse_axes
from archon_core.plugins.clashes import explain_several_builders
from archon_core.plugins.first_party import PACKAGES
from archon_core.plugins.hints import package_for
from archon_core.selection import select_adapter, select_model
from archon_train.findings import Findings
from archon_train.local_files import model_entries, model_type_of
from archon_train.model_sections import critic_problems, engine_section, stray_value_head


class EngineChecks:
    """Checks the engines of a run.

    Args:
        findings: takes the problems.
        config: the run's configuration, with the defaults in place of sections that it does not use.
        layouts: role -> layout, of the roles whose layout is valid.
        explicit: dotted names of the options that the user wrote.
        samples: whether the run samples completions.

    Attributes:
        decisions: of the engines' own previews.
    """

    def __init__(
        self, findings: Findings, config: Any, layouts: Mapping[str, Layout], explicit: frozenset[str], *, samples: bool
    ) -> None:
        self._findings, self._config, self._layouts = findings, config, layouts
        self._explicit, self._samples = explicit, samples
        self._models: dict[str, ModelSpec | None] = {}
        self.decisions: list[Decision] = []

    def check(self, role: str) -> None:
        """Check the engine of one role. The actor's comes first."""
        config, layout = engine_section(self._config, role), self._layouts.get(role)
        if layout is None:
            return
        option = f"{role}.backend"
        engine = self._findings.look_up("train_engine", layout.backend, option)
        if not isinstance(engine, TrainEngineSpec):
            return
        if config.backend:  # an inherited layout is checked for the role that sets it
            try:
                refuse_axes(layout, engine.axes, option=option)
            except LayoutError as error:
                self._findings.unable(str(error))
        # An error about the actor's model is not repeated for the models that start from its weights.
        inherits = getattr(config, "path", None) == self._config.actor.path and role in ("critic", "ref")
        if not inherits or self._models.get("actor") is not None:
            self._models[role] = self._check_model(role, config, layout, engine)
        model = self._models.get(role)
        if role in ("ref", "teacher") or (role == "actor" and self._samples):
            for text in stray_value_head(role, config):
                self._findings.wrong(text)
        if role == "critic":
            for text in critic_problems(config, model, self._explicit):
                self._findings.wrong(text)
        schedule, pipeline = self._check_pipeline(role, config, layout, engine)
        self._check_experts(role, config, layout, engine, model)
        self._check_adapters(role, config)
        if engine.preview:
            outline = EngineOutline(
                config,
                role,
                self._explicit,
                layout,
                model,
                schedule,
                pipeline,
                model_entries(config),
                self._config.rollout if self._samples else None,
            )
            self._preview(engine, outline)

    def _preview(self, engine: TrainEngineSpec, outline: EngineOutline) -> None:
        """Add the problems and decisions that the engine's own preview finds."""
        self._add(self._findings.ask(engine, "preview", outline, option=f"{outline.role}.backend"))

    def _add(self, found: EnginePreview | None) -> None:
        """Add problems and decisions."""
        if found is None:
            return
        for text in found.problems:
            self._findings.wrong(text)
        self.decisions += found.decisions

    def _check_pipeline(
        self, role: str, config: EngineConfig, layout: Layout, engine: TrainEngineSpec
    ) -> tuple[ScheduleSpec | None, PipelineSpec | None]:
        """The schedule and the pipeline plugin of a layout with stages."""
        name, option = engine.asked(config, "schedule"), engine.option("schedule", role)
        if layout.dims["p"] == 1 or name is None or option is None:
            return None, None
        schedule = self._findings.look_up("schedule", name, option)
        if not isinstance(schedule, ScheduleSpec):
            return None, None
        try:
            return schedule, self._findings.registry.get(PipelineSpec, PIPELINE)
        except PluginError as error:
            self._findings.unable(f"{role}.backend: {error}")
        except UnknownNameError:
            package = next(iter(PACKAGES["pipeline"]))
            self._findings.need(missing_package(package, self._findings.registry), f"the stages of {layout}")
        return schedule, None

    def _check_experts(
        self, role: str, config: EngineConfig, layout: Layout, engine: TrainEngineSpec, model: ModelSpec | None
    ) -> None:
        """Check that a plugin builds the experts, and that the expert options are valid."""
        has_experts = None if model is None else "moe" in model.needs
        installed = self._findings.registry.all(MoESpec)
        needed = has_experts or layout.ep > 1 or (layout.etp or 1) > 1
        asked, option = engine.asked(config, "moe"), engine.option("moe", role)
        if asked is not None and option is not None and needed:
            chosen = self._findings.look_up("moe", asked, option)
        elif needed and not installed:
            package = next(iter(PACKAGES["moe"]))
            self._findings.need(
                missing_package(package, self._findings.registry), f"the experts of {self._layouts[role]}"
            )
            return
        elif needed and len(installed) > 1:
            self._findings.wrong(explain_several_builders([spec.name for spec in installed], option))
            return
        else:
            chosen = next((spec for spec in installed if asked in (None, spec.name)), None)
        if isinstance(chosen, MoESpec) and chosen.check:
            facts = {"role": role, "explicit": self._explicit, "has_experts": has_experts}
            problems = self._findings.ask(chosen, "check", config, **facts)
            for text in problems or ():
                self._findings.wrong(text)

    def _check_adapters(self, role: str, config: EngineConfig) -> None:
        """Add the problems and decisions of adapters about their options."""
        try:
            select_adapter(config, self._findings.registry, role=role)
        except ConfigError as error:
            self._findings.wrong(str(error))
        for spec in self._findings.registry.all(AdapterSpec):
            if spec.preview and hasattr(config, spec.option):
                self._add(self._findings.ask(spec, "preview", config, role=role, explicit=self._explicit))

    def _check_model(
        self, role: str, config: EngineConfig, layout: Layout, engine: TrainEngineSpec
    ) -> ModelSpec | None:
        """The model spec, if the model type is known locally."""
        model_type = model_type_of(config)
        if model_type is None or not engine.model_type:
            return None
        option = f"{role}.path" if config.path else f"{role}.model_config"
        try:
            spec = select_model(config, engine, self._findings.registry, model_type=model_type, role=role)
        except ConfigError as error:
            self._findings.wrong(str(error))
            return None
        except ArchonError as error:
            name = engine.model or engine.asked(config, "model")
            wanted, option = (model_type, option) if name is None else (name, engine.option("model", role) or option)
            package = package_for("model", wanted)
            if package is None or isinstance(error, PluginError):
                self._findings.unable(f"{option}: {error}")
            else:
                self._findings.need(missing_package(package, self._findings.registry), f"{option}: {wanted}")
            return None
        try:
            layout.parallel_dims(moe="moe" in spec.needs, option=f"{role}.backend")
        except LayoutError as error:
            self._findings.wrong(str(error))
        return spec
