"""Parses the layouts of ``archon verify``. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from archon_core.errors import ConfigError, LayoutError
from archon_core.layout import Layout, backend_table, parse_layout, refuse_axes
from archon_core.plugins import ScheduleSpec, TrainEngineSpec, registry
from archon_core.plugins.inference_engines import inference_engines
from archon_testing.pipelines import OUR_ENGINE, count_stages, pipeline_schedule
from archon_testing.worlds import MOST_RANKS

DEFAULT_BACKEND = OUR_ENGINE
_OPTION = "--layout"


@dataclass(frozen=True)
class RequestedLayout:
    """A layout to verify.

    Attributes:
        layout: parsed.
        schedule: name of the pipeline schedule; ``None`` if none was given.
        n_stages: pipeline stages.
    """

    layout: Layout
    schedule: str | None = None
    n_stages: int = 1

    def __str__(self) -> str:
        return str(self.layout) if self.schedule is None else f"{self.layout}-{self.schedule}"

    @property
    def sums_gradients(self) -> bool:
        """Whether ranks work on different tokens, so that gradients are summed."""
        dims = self.layout.parallel_dims(moe=True)
        return dims.dp_replicate * dims.dp_shard * dims.cp > 1

    @property
    def resumable(self) -> tuple[str, str | None]:
        """Values of ``Case.resume_on`` and ``Case.resume_schedule``."""
        return str(self.layout), self.schedule

    def check_runnable(self) -> None:
        """Raise LayoutError for axes that the engine cannot run as it is installed."""
        refuse_axes(self.layout, registry().get(TrainEngineSpec, self.layout.backend).axes, option=_OPTION)


def read_layouts(texts: Iterable[str]) -> list[RequestedLayout]:
    """Parse layouts and drop duplicates.

    Raises:
        LayoutError, UnknownNameError: as ``read_layout`` does.
    """
    return list(dict.fromkeys(read_layout(text) for text in texts))


def read_layout(text: str) -> RequestedLayout:
    """Parse ``[archon:]DIMS[-SCHEDULE]``, such as ``d2t2`` or ``p2-ZBV``.

    Raises:
        LayoutError: the layout is malformed, names an inference engine, has more ranks than a world, or has a schedule
            without pipeline parallelism.
        UnknownNameError: no plugin provides the schedule, the engine, or the pipeline.
    """
    backend, colon, rest = text.partition(":")
    if not colon or "(" in backend:
        backend, rest = DEFAULT_BACKEND, text
    dims, dash, schedule = rest.partition("-")
    plugins = registry()
    backends = backend_table(plugins.all(TrainEngineSpec), inference_engines(plugins))
    layout = parse_layout(f"{backend}:{dims}", backends=backends, option=_OPTION)
    if layout.kind != "train":
        raise LayoutError(
            f"{_OPTION} {text!r}: found the inference engine {layout.backend!r}; allowed are training engines; write "
            f"{DEFAULT_BACKEND}:{dims or 'd2'}"
        )
    plugins.get(TrainEngineSpec, layout.backend)
    if layout.world_size > MOST_RANKS:
        raise LayoutError(
            f"{_OPTION} {text!r}: found {layout.world_size} ranks; allowed are at most {MOST_RANKS}; reduce the sizes: "
            "every axis shows its errors at size 2 already"
        )
    n_ranks = layout.dims["p"]
    if not dash and n_ranks == 1:
        return RequestedLayout(layout)
    if n_ranks == 1:
        raise LayoutError(
            f"{_OPTION} {text!r}: found the schedule {schedule!r} without pipeline parallelism; a schedule needs p2 or "
            f"more; write {dims}, or p2-{schedule or 'ZBV'}"
        )
    if layout.backend != OUR_ENGINE:
        return RequestedLayout(layout, plugins.get(ScheduleSpec, schedule).name if dash else None, n_ranks)
    spec = pipeline_schedule(schedule if dash else None)
    return RequestedLayout(layout, spec.name if dash else None, count_stages(spec, n_ranks))


def resume_layouts(
    asked: RequestedLayout, others: Sequence[RequestedLayout], number: int = 0
) -> list[tuple[str, str | None]]:
    """The layouts that resume a run of ``asked``: another layout of equally many ranks, and one process.

    Args:
        asked: the layout that saves.
        others: layouts that can run the same model. Those with other axes are preferred, alternating by ``number``.
        number: index of the alternation.
    """
    if asked.layout.world_size == 1:
        return []

    def axes_of(layout: RequestedLayout) -> frozenset[str]:
        dims = layout.layout.parallel_dims(moe=True)
        return frozenset(axis for axis, size in asdict(dims).items() if size > 1)

    own = axes_of(asked)
    fitting = [
        other
        for other in others
        if other.layout.backend == asked.layout.backend
        and other.layout.world_size == asked.layout.world_size
        and str(other.layout) != str(asked.layout)
    ]
    least = min((len(own & axes_of(other)) for other in fitting), default=0)
    apart = [other for other in fitting if len(own & axes_of(other)) == least]
    chosen = [apart[number % len(apart)].resumable] if apart else []
    return [*chosen, (f"{asked.layout.backend}:d1", None)]


def model_of_engines(layouts: Iterable[tuple[RequestedLayout, str]], run_as: str | None) -> str | None:
    """The model spec that the engines of all layouts run: ``run_as``, or the fixed one of an engine.

    Raises:
        ConfigError: engines run different specs, for which one reference cannot serve.
    """
    plugins = registry()
    found: dict[str | None, str] = {}
    for layout, _ in layouts:
        engine = plugins.get(TrainEngineSpec, layout.layout.backend)
        found.setdefault(engine.chosen_model(run_as, option="--model"), str(layout))
    if len(found) > 1:
        [(mine, first), (other, second), *_] = found.items()
        models = " and ".join(name or "the one that serves" for name in (mine, other))
        raise ConfigError(
            f"{_OPTION}: found {first} and {second}, whose engines run different models ({models}); verify them one "
            f"after the other, or both with --model {mine or other}"
        )
    return next(iter(found), run_as)
