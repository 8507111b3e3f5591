"""The work of ``archon verify``: plans the cases of all layouts, runs them in parallel, and reports each layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from archon_core.errors import ArchonError, LayoutError, ModelError
from archon_core.plugins import ScheduleSpec, registry
from archon_engine.options.archon import ArchonOptions
from archon_engine.options.context_style import AUTO, ContextStyle
from archon_testing.cases import Case, Prefixes, Variant, variant_case
from archon_testing.diagnosis import Diagnosis
from archon_testing.enumeration import Design, candidate_layouts
from archon_testing.failures import WorldError
from archon_testing.functions import FunctionReference
from archon_testing.oracle import Oracle, Outcome
from archon_testing.pipelines import runnable_axes
from archon_testing.requested import DEFAULT_BACKEND, RequestedLayout, read_layout, resume_layouts
from archon_testing.requested_model import RequestedModel
from archon_testing.verdicts import Verdict
from archon_testing.worlds import run_world

_MISFITS = FunctionReference("archon_testing.fitting", "misfits")
_REFUSED = FunctionReference("archon_testing.fitting", "refused_variants")

Advance = Callable[[], None]
"""Called after each reference and each case."""


@dataclass(frozen=True)
class LayoutReport:
    """The results of one layout.

    Attributes:
        layout: the layout.
        verdicts: of the completed cases.
        refusal: why it cannot run; empty if it can.
        crash: the error that ended its ranks early; empty if there was none.
        diagnoses: for layouts with wrong values, where the errors first appear.
        undiagnosed: the error of a failed diagnosis; empty if there was none.
    """

    layout: RequestedLayout
    verdicts: Sequence[Verdict]
    refusal: str = ""
    crash: str = ""
    diagnoses: Sequence[Diagnosis] = ()
    undiagnosed: str = ""

    @property
    def passed(self) -> bool:
        """Whether all cases passed."""
        return not (self.refusal or self.crash) and all(verdict.passed for verdict in self.verdicts)

    @property
    def outcome(self) -> str:
        """``passed``, ``different``, ``crashed`` or ``refused``."""
        if self.refusal:
            return "refused"
        return "crashed" if self.crash else "passed" if self.passed else "different"


@dataclass(frozen=True)
class Plan:
    """The plan of a verification.

    Attributes:
        model: the model.
        layouts: layouts, each with the reason why it cannot run; empty if it can.
        left_out: layouts of ``--all`` that do not fit the model -> reason.
        design: selects the cases of each layout.
        seed: of weights and batches.
        fitting: layouts that can run the model, to resume runs on.
        cp_style: how context ranks share attention.
        prefixes: of the batches on the layouts.
    """

    model: RequestedModel
    layouts: Sequence[tuple[RequestedLayout, str]]
    left_out: dict[str, str]
    design: Design
    seed: int
    fitting: Sequence[RequestedLayout] = ()
    cp_style: ContextStyle = AUTO
    prefixes: Prefixes = "distinct"

    @property
    def groups(self) -> list[list[Case]]:
        """The cases of every layout that can run."""
        return [self._cases(layout, number) for number, (layout, refusal) in enumerate(self.layouts) if not refusal]

    def _cases(self, layout: RequestedLayout, number: int) -> list[Case]:
        entries = self.model.entries_for(layout.n_stages)
        of_variant = {
            variant: variant_case(
                entries,
                variant,
                layout=str(layout.layout),
                schedule=layout.schedule,
                seed=self.seed,
                model=self.model.spec.name,
                cp_style=self.cp_style,
                prefixes=self.prefixes,
            )
            for variant in self.design.variants
        }
        n_layers = entries.get("num_hidden_layers")
        able = [other for other in self.fitting if not _reason_against_stages(n_layers, other.n_stages)]
        return self.design.cases(
            of_variant,
            number,
            n_stages=layout.n_stages,
            sums_gradients=layout.sums_gradients,
            resume_on=resume_layouts(layout, able, number),
        )


def all_layouts(
    model: RequestedModel,
    variants: Sequence[Variant],
    world: int,
    *,
    cp_style: ContextStyle = AUTO,
    prefixes: Prefixes = "distinct",
) -> tuple[list[str], dict[str, str]]:
    """The layouts of ``--all``, and the reasons why others do not fit the model.

    Args:
        model: the model.
        variants: the variants that must fit.
        world: most ranks.
        cp_style: how context ranks share attention.
        prefixes: of the batches on the layouts.

    Raises:
        ArchonError: the model cannot be built.
        WorldError: the process that builds it failed.
    """
    # A p2 without a schedule name runs the default schedule.
    schedules = [spec.name for spec in registry().all(ScheduleSpec) if spec.name != ArchonOptions().pp_schedule]
    texts = candidate_layouts(runnable_axes(), model.spec.capabilities, world, schedules=schedules)
    fields = {"model": model.spec.name, "cp_style": cp_style, "prefixes": prefixes}
    cases = [variant_case(model.entries, variant, **fields) for variant in variants]
    plain = [f"{DEFAULT_BACKEND}:{text}" for text in texts if "-" not in text]
    [found] = run_world(_MISFITS, 1, (cases, plain), time_limit=120, show_output=False)
    if isinstance(found, ArchonError):
        raise found
    reasons = {text.partition(":")[2]: reason for text, reason in found.items()}
    for text in texts:
        if text.partition("-")[0] not in reasons and (reason := too_few_layers(model, read_layout(text))):
            reasons[text] = reason
    fitting = [text for text in texts if text not in reasons and text.partition("-")[0] not in reasons]
    return fitting, reasons


def buildable_variants(
    model: RequestedModel, variants: Sequence[Variant], *, explicit: bool
) -> tuple[tuple[Variant, ...], tuple[str, ...]]:
    """The variants that can be built, and remarks about the others.

    A spec that takes any model type declares general capabilities, which a specific model may lack.

    Args:
        model: the model to verify.
        variants: that its spec declares.
        explicit: whether the user requested these variants.

    Raises:
        ModelError: no variant can be built, or a requested one cannot.
        WorldError: the process that builds them failed.
    """
    if not model.spec.takes_any:
        return tuple(variants), ()
    cases = [variant_case(model.entries, variant, model=model.spec.name) for variant in variants]
    [refused] = run_world(_REFUSED, 1, (cases,), time_limit=120, show_output=False)
    if refused and (explicit or len(refused) == len(variants)):
        raise ModelError(next(iter(refused.values())))
    left = tuple(variant for variant in variants if variant not in refused)
    return left, tuple(f"no {variant}: {reason}" for variant, reason in refused.items())


def too_few_layers(model: RequestedModel, layout: RequestedLayout) -> str:
    """Why a model with given sizes does not fit a layout's stages; empty if it does."""
    return _reason_against_stages(model.entries_for(layout.n_stages).get("num_hidden_layers"), layout.n_stages)


def _reason_against_stages(n_layers: object, n_stages: int) -> str:
    # The embedding and the head can be stages, too.
    if not isinstance(n_layers, int) or n_stages <= n_layers + 2:
        return ""
    return f"found {n_stages} stages; {n_layers} layers, the embedding and the head fill {n_layers + 2}"


def requested_layouts(layouts: Sequence[RequestedLayout]) -> list[tuple[RequestedLayout, str]]:
    """Each layout with the reason why the engine cannot run it; empty if it can."""

    def refusal(layout: RequestedLayout) -> str:
        try:
            layout.check_runnable()
        except LayoutError as error:
            return str(error)
        return ""

    return [(layout, refusal(layout)) for layout in layouts]


def largest_world_size(asked: Sequence[tuple[RequestedLayout, str]]) -> int:
    """The ranks of the largest runnable layout of the Archon engine; 0 if there is none."""
    ours = [layout.layout for layout, refusal in asked if not refusal and layout.layout.backend == DEFAULT_BACKEND]
    return max((layout.world_size for layout in ours), default=0)


def layouts_of_all(texts: Sequence[str]) -> list[tuple[RequestedLayout, str]]:
    """``all_layouts`` in the form of ``requested_layouts``."""
    return [(read_layout(text), "") for text in texts]


def count_steps(plan: Plan, oracle: Oracle) -> int:
    """The number of ``advance`` calls of ``run_plan``."""
    cases = [case for group in plan.groups for case in group]
    return oracle.count_missing(cases) + len(cases)


def run_plan(plan: Plan, oracle: Oracle, advance: Advance) -> Iterator[LayoutReport]:
    """Verify the layouts in parallel, largest first.

    Yields:
        The report of each layout, in the order of the plan, as soon as it and all before it are done.

    Raises:
        ArchonError: the model cannot be built or trained on one process.
    """
    ready = {i: LayoutReport(layout, (), refusal) for i, (layout, refusal) in enumerate(plan.layouts) if refusal}
    places = [i for i in range(len(plan.layouts)) if i not in ready]
    groups = dict(zip(places, plan.groups, strict=True))
    oracle.prepare([case for group in groups.values() for case in group], on_reference=lambda _: advance())
    places.sort(key=lambda i: -plan.layouts[i][0].layout.world_size)
    shown = 0
    with closing(oracle.verify_layouts([groups[i] for i in places], on_verdict=lambda _: advance())) as ended:
        for place, outcome in ended:
            i = places[place]
            ready[i] = _report(plan.layouts[i][0], outcome, oracle)
            while shown in ready:
                yield ready.pop(shown)
                shown += 1
    while shown in ready:
        yield ready.pop(shown)
        shown += 1


def _report(layout: RequestedLayout, outcome: Outcome, oracle: Oracle) -> LayoutReport:
    refusals = [verdict.refusal for verdict in outcome.verdicts if verdict.refusal]
    if refusals:
        return LayoutReport(layout, (), refusal=refusals[0])
    report = LayoutReport(layout, outcome.verdicts, crash="" if outcome.crash is None else str(outcome.crash))
    if report.passed:
        return report
    try:
        return replace(report, diagnoses=oracle.diagnose(outcome))
    except WorldError as error:
        return replace(report, undiagnosed=str(error))
