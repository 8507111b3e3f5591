"""What fits where an engine does not: other settings of the same layout, other layouts of as many ranks, more ranks.

Every suggestion is planned like the engine itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from archon_core.errors import ArchonError
from archon_core.layout import ParallelDims
from archon_core.plugins import Registry
from archon_plan.answer import Answer, EngineAnswer, bucket_of, memory_of
from archon_plan.constraints import check_engine
from archon_plan.engine_plan import plan_engine
from archon_plan.layouts import nearest_layouts, write_layout
from archon_plan.parts import EngineRequest
from archon_plan.violations import Check

LARGEST_FACTOR = 64
"""Most times as many ranks to try."""


@dataclass(frozen=True)
class Alternatives:
    """What fits instead of an engine that does not.

    Attributes:
        settings: option -> value, of the same layout; each entry fits.
        layouts: of as many ranks, with the same settings.
        larger: the layout with the smallest multiple of d that fits; ``None`` if none up to 64 times does.
    """

    settings: tuple[dict[str, str], ...]
    layouts: tuple[str, ...]
    larger: str | None


def find_alternatives(answer: Answer, engine: EngineAnswer, registry: Registry) -> Alternatives:
    """What fits in the place of ``engine``, while the other engines stay as they are."""
    request, device = engine.plan.request, answer.device
    kept = answer.peak(engine) - engine.fullest.total
    bucket = bucket_of(answer.request, request.role)

    def fits(other: EngineRequest, check: Check) -> bool:
        memory = memory_of(plan_engine(other, check).setting, device, bucket=bucket)
        return all(rank.total + kept <= device.memory for rank in memory)

    def works(other: EngineRequest) -> bool:
        check = check_engine(other, registry)
        return not check.violations and fits(other, check)

    settings: list[dict[str, str]] = []
    for options, changed in _other_settings(request, engine.plan.setting.tokens.n_micro_batches):
        if not any(_suffices(found, options) for found in settings) and works(changed):
            settings.append(options)
    check = check_engine(request, registry)
    layouts = nearest_layouts(request, check, registry, accept=fits, most_tried=60)
    larger = None
    for text in _larger(engine):
        if works(replace(request, layout=text)):
            larger = text
            break
    return Alternatives(tuple(settings), layouts, larger)


def _suffices(found: dict[str, str], options: dict[str, str]) -> bool:
    """Whether ``options`` change more than ``found``, or the same with fewer tokens than needed."""
    rest, others = (
        {name: value for name, value in each.items() if not name.startswith("mb_spec.")} for each in (found, options)
    )
    has_tokens = len(rest) < len(found)
    return rest.items() <= others.items() and (not has_tokens or len(others) < len(options))


def _other_settings(request: EngineRequest, n_mbs: int) -> Iterator[tuple[dict[str, str], EngineRequest]]:
    """Cheaper settings, alone and then together: the fewest changes first.

    Args:
        request: the engine.
        n_mbs: its micro-batches in effect. Smaller ones are more, so that a step has the same tokens.
    """
    config = request.config
    changes: list[tuple[dict[str, str], EngineRequest]] = []
    if config.optimizer is not None and (config.archon.ac_mode != "full" or not config.gradient_checkpointing):
        full = replace(config, gradient_checkpointing=True, archon=replace(config.archon, ac_mode="full"))
        options = {"gradient_checkpointing": "true"} if not config.gradient_checkpointing else {}
        changes.append(({**options, "archon.ac_mode": "full"}, replace(request, config=full)))
    tokens, length = config.mb_spec.max_tokens_per_mb, request.sequences.length
    halves = []
    while tokens is not None and tokens // 2 >= length:
        tokens //= 2
        halves.append(tokens)
    for base, changed in [({}, request), *changes]:
        for half in halves[:3]:
            spec = changed.config.mb_spec
            times = (config.mb_spec.max_tokens_per_mb or half) // half if request.sequences.number is None else 1
            smaller = replace(spec, max_tokens_per_mb=half, n_mbs=n_mbs * times if times > 1 else spec.n_mbs)
            options = {**base, "mb_spec.max_tokens_per_mb": str(half)}
            if times > 1:
                options["mb_spec.n_mbs"] = str(smaller.n_mbs)
            changes.append((options, replace(changed, config=replace(changed.config, mb_spec=smaller))))
    yield from changes
    if not config.archon.offload_params:
        for base, changed in [({}, request), *changes]:
            archon = replace(changed.config.archon, offload_params=True)
            yield (
                {**base, "archon.offload_params": "true"},
                replace(changed, config=replace(changed.config, archon=archon)),
            )


def _larger(engine: EngineAnswer) -> Iterator[str]:
    plan, dims = engine.plan, engine.plan.setting.dims
    factor = 2
    while factor <= LARGEST_FACTOR:
        try:
            more: ParallelDims = replace(dims, dp_shard=dims.dp_shard * factor)
        except ArchonError:  # a size above the grammar's limit
            return
        yield write_layout(more, backend=plan.parts.layout.backend, moe=plan.setting.anatomy.has_experts)
        factor *= 2
