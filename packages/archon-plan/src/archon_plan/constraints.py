"""All constraints that a layout or an option violates, each with what was found and what is allowed.

A run stops at the first one. The rules are those of a run: the layout grammar, the capabilities and sizes of the model,
the split into stages, and the table of option conflicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from archon_core.config.rules import broken_rules
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import TrainEngineSpec
from archon_core.contracts.model import ModelSpec
from archon_core.contracts.pipeline import PipelineSpec, ScheduleSpec
from archon_core.errors import ArchonError, ConfigError, LayoutError, ModelError, PluginError, UnknownNameError
from archon_core.layout import Backend, Layout, ParallelDims, backend_table
from archon_core.layout.axes import AXIS_NAMES, list_letters
from archon_core.layout.diagnostics import Fault, underline
from archon_core.layout.rules import faults
from archon_core.layout.suggestions import mended
from archon_core.layout.syntax import UnreadableError, read_layout
from archon_core.models.anatomy import ModelAnatomy
from archon_core.plugins import Registry
from archon_core.plugins.inference_engines import inference_engines
from archon_core.selection import select_model
from archon_engine.models.capabilities import CAPABILITY_OF_AXIS, tree_refusal
from archon_engine.options.combinations import changes, refusals, refuse_when_strict
from archon_engine.options.context import OptionContext
from archon_engine.options.context_style import split_context
from archon_engine.options.pipelines import micro_batch_decisions
from archon_engine.options.shared_prefixes import refuse_rotations
from archon_plan.extents import context_decisions, context_sizes, expert_extents, sharded_extents
from archon_plan.models import read_anatomy
from archon_plan.parts import EngineRequest, Parts, choose_pipeline, plan_stages
from archon_plan.violations import Check, Violation, divisors


def check_engine(request: EngineRequest, registry: Registry) -> Check:
    """Check one engine."""
    return _Checker(request, registry).check()


def backends(registry: Registry) -> Mapping[str, Backend]:
    """The engines that layouts may name."""
    return backend_table(registry.all(TrainEngineSpec), inference_engines(registry))


class _Checker:
    def __init__(self, request: EngineRequest, registry: Registry) -> None:
        self._request, self._registry = request, registry
        self._found: list[Violation] = []
        self._option = request.option
        self._is_faulty = False

    def check(self) -> Check:
        request = self._request
        self._add_option_errors(f"{request.role}.", request.config)
        for name in ("archon", "mb_spec", "optimizer"):
            section = getattr(request.config, name)
            if section is not None:
                self._add_option_errors(f"{request.role}.{name}.", section)
        layout = self._layout()
        engine = None if layout is None else self._engine(layout)
        model = self._model(engine) if engine is not None else None
        anatomy = None if model is None else self._anatomy(model)
        if layout is None or engine is None:
            return Check(tuple(self._found), layout=layout)
        self._check_axes(layout, engine)
        dims = None if model is None else self._dims(layout, model)
        if model is not None:
            self._check_capabilities(layout, model)
        if anatomy is not None:
            self._check_sizes(layout, dims, anatomy)
        schedule, pipeline = self._pipeline(layout, engine)
        n_stages = None
        if anatomy is not None and schedule is not None and pipeline is not None:
            n_stages = self._stages(layout, anatomy, schedule, pipeline)
        of_context = [] if anatomy is None or dims is None else self._context_decisions(anatomy, dims)
        self._check_options(layout, schedule, n_stages, of_context)
        parts = None
        if model is not None and anatomy is not None and (layout.dims["p"] == 1 or pipeline is not None):
            parts = Parts(layout, engine, model, anatomy, schedule, pipeline)
        return Check(tuple(self._found), parts, dims, layout, model, anatomy)

    def _add(self, found: str, allowed: str = "", *, fix: str = "", option: str = "", marks: str = "") -> None:
        self._found.append(Violation(option or self._option, found, allowed, fix, marks))

    def _add_error(self, error: Exception, option: str) -> None:
        """Add an error of another function, whose message says found / allowed / fix itself."""
        text = str(error).removeprefix(f"{option}: ").removeprefix("found ")
        self._found.append(Violation(option, text))

    def _add_option_errors(self, prefix: str, section: object) -> None:
        for name, text in broken_rules(section):
            found, _, allowed = text.removeprefix("found ").partition("; allowed are ")
            self._add(found, allowed, option=f"{prefix}{name}")

    def _layout(self) -> Layout | None:
        text, table = self._request.layout, backends(self._registry)
        try:
            layout = read_layout(text, table)
        except UnreadableError as error:
            self._add_fault(text, error.fault, more=mended(text, table))
            return None
        for fault in faults(layout, table):
            self._add_fault(text, fault)
            self._is_faulty = True
        if layout.kind != "train":
            trainers = ", ".join(name for name, backend in table.items() if backend.kind == "train")
            self._add(f"{layout.backend}, which generates", f"engines that train: {trainers}")
            return None
        return layout

    def _add_fault(self, text: str, fault: Fault, *, more: Iterable[str] = ()) -> None:
        suggestions = tuple(dict.fromkeys((*fault.candidates, *more)))
        marks = underline(text, fault.spans)
        self._found.append(Violation(self._option, fault.found, fault.allowed, fault.advice, marks, suggestions))

    def _engine(self, layout: Layout) -> TrainEngineSpec | None:
        try:
            return self._registry.get(TrainEngineSpec, layout.backend)
        except (UnknownNameError, PluginError) as error:
            self._add_error(error, self._option)
            return None

    def _model(self, engine: TrainEngineSpec) -> ModelSpec | None:
        request = self._request
        try:
            return select_model(
                request.config, engine, self._registry, model_type=request.model.model_type, role=request.role
            )
        except ArchonError as error:
            self._add_error(error, f"model {request.model.name}")
            return None

    def _anatomy(self, model: ModelSpec) -> ModelAnatomy | None:
        request = self._request
        try:
            return read_anatomy(model, request.model.entries, critic=request.config.is_critic)
        except ArchonError as error:
            self._add_error(error, f"model {request.model.name}")
            return None

    def _check_axes(self, layout: Layout, engine: TrainEngineSpec) -> None:
        used = [(letter, size) for letter, size in layout.dims if size > 1]
        if layout.ffn is not None and layout.ffn.product("et") > 1:
            used.append(("e", layout.ffn.product("et")))
        for letter, size in used:
            if letter in layout.engine.letters and letter not in engine.axes:
                self._add(
                    f"{letter}{size} ({AXIS_NAMES[letter]}), which the engine {engine.name} cannot run",
                    f"sizes above 1 of {list_letters(engine.axes)}",
                )

    def _dims(self, layout: Layout, model: ModelSpec) -> ParallelDims | None:
        has_experts = "moe" in model.needs
        if self._is_faulty:
            return None  # the sizes contradict each other, which is reported already
        if not has_experts and (layout.ep > 1 or layout.etp not in (None, 1, layout.dims["t"])):
            letter, size = ("e", layout.ep) if layout.ep > 1 else ("t", layout.etp)
            self._add(
                f"{letter}{size} for experts, and model {model.name} has none", "e with a mixture-of-experts model only"
            )
            return None
        try:
            return layout.parallel_dims(moe=has_experts, option=self._option)
        except LayoutError as error:
            self._add_error(error, self._option)
            return None

    def _check_capabilities(self, layout: Layout, model: ModelSpec) -> None:
        declared = ", ".join(sorted(model.capabilities)) or "none"
        for letter, capability in CAPABILITY_OF_AXIS.items():
            size = layout.ep if letter == "e" else layout.dims[letter]
            if size > 1 and capability not in model.capabilities and not (letter == "e" and "moe" not in model.needs):
                self._add(
                    f"{letter}{size}, and model {model.name} does not support {capability}",
                    f"axes of its capabilities: {declared}",
                )
        if self._request.config.is_critic and "critic" not in model.capabilities:
            self._add(
                f"a value head, which model {model.name} does not support",
                f"its capabilities: {declared}",
                option=f"{self._request.role}.is_critic",
            )
        if self._request.config.enable_tree_training:
            role, entries = self._request.role, self._request.model.entries
            if refusal := tree_refusal(model, role=role) or refuse_rotations(entries, role=role):
                self._add_error(ModelError(refusal), f"{role}.enable_tree_training")

    def _check_sizes(self, layout: Layout, dims: ParallelDims | None, anatomy: ModelAnatomy) -> None:
        extents = sharded_extents(anatomy)
        tensor = layout.dims["t"]
        if broken := extents.not_divided_by(tensor):
            listed = ", ".join(f"{what} ({extent})" for what, extent in broken.items())
            common = math.gcd(*extents.by_tensor_ranks.values())
            self._add(f"t{tensor} on {listed}", f"a t that divides them: {divisors(common)}")
        for what, extent in extents.too_few_for(tensor).items():
            self._add(
                f"t{tensor} on {what} ({extent}), of which some tensor ranks would get none",
                f"up to {extent} equal parts, the last one smaller",
            )
        self._check_context(layout, anatomy)
        n_experts, inner = expert_extents(anatomy)
        ep, etp = layout.ep, 1 if dims is None else dims.etp
        if n_experts and n_experts % ep:
            self._add(f"e{ep} on {n_experts} experts", f"an e that divides them: {divisors(n_experts)}")
        if n_experts and inner % etp:
            self._add(
                f"etp {etp} on the width inside an expert ({inner})", f"an etp that divides it: {divisors(inner)}"
            )

    def _check_context(self, layout: Layout, anatomy: ModelAnatomy) -> None:
        config, role = self._request.config, self._request.role
        option = f"{role}.archon.cp_style"
        sizes = context_sizes(anatomy, ParallelDims(cp=layout.dims["c"], tp=layout.dims["t"]))
        if sizes.query_heads % sizes.tensor:
            sizes = replace(sizes, tensor=1)  # an error about t exists; c is checked as if t were left out
        try:
            split_context(config.archon.cp_style, sizes, option=option)
        except ConfigError as error:
            self._add_error(error, option)

    def _pipeline(self, layout: Layout, engine: TrainEngineSpec) -> tuple[ScheduleSpec | None, PipelineSpec | None]:
        try:
            return choose_pipeline(self._request.config, engine, layout, self._registry)
        except UnknownNameError as error:
            self._add_error(error, engine.option("schedule", self._request.role) or self._option)
        except ArchonError as error:
            self._add_error(error, self._option)
        return None, None

    def _stages(
        self, layout: Layout, anatomy: ModelAnatomy, schedule: ScheduleSpec, pipeline: PipelineSpec
    ) -> int | None:
        """The number of stages; ``None`` if the model cannot be split like that."""
        role = self._request.role
        try:
            return len(
                plan_stages(
                    anatomy,
                    pipeline,
                    schedule,
                    n_ranks=layout.dims["p"],
                    options=self._request.config.archon,
                    role=role,
                )
            )
        except LayoutError as error:
            self._add_error(LayoutError(str(error).removeprefix(f"{role}.backend: ")), self._option)
        except ConfigError as error:
            option, _, text = str(error).partition(": ")
            self._add_error(ConfigError(text), option)
        except PluginError as error:
            self._add_error(error, self._option)
        return None

    def _context_decisions(self, anatomy: ModelAnatomy, dims: ParallelDims) -> list[Decision]:
        request = self._request
        try:
            return context_decisions(anatomy, dims, request.config, request.ranks_per_node, role=request.role)
        except ConfigError:
            return []  # ``_check_context`` reports a style that does not fit

    def _check_options(
        self, layout: Layout, schedule: ScheduleSpec | None, n_stages: int | None, of_context: Iterable[Decision]
    ) -> None:
        request, n_ranks = self._request, layout.dims["p"]
        context = OptionContext.of(
            request.config,
            request.role,
            request.explicit,
            device=request.device,
            pipeline_ranks=n_ranks,
            schedule=schedule,
            context_ranks=layout.dims["c"],
        )
        for option, text in refusals(context):
            self._add(text.removeprefix("found "), option=f"{request.role}.{option}")
        _, decisions = changes(context, role=request.role)
        decisions += of_context
        if schedule is not None and n_stages is not None:
            spec = request.config.mb_spec
            decisions += micro_batch_decisions(spec, schedule, n_ranks=n_ranks, n_stages=n_stages, role=request.role)
        if refusal := refuse_when_strict(request.config, decisions, role=request.role):
            option, _, text = refusal.partition(": found ")
            self._add(text, option=option)
