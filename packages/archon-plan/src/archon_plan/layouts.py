"""Layouts near one that does not work: the same number of ranks, on axes of other sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from archon_core.errors import LayoutError
from archon_core.layout import Layout, ParallelDims
from archon_core.layout.grammar import working
from archon_core.layout.model_sizes import ShardedExtents
from archon_core.models.anatomy import ModelAnatomy
from archon_core.plugins import Registry
from archon_engine.options.context_style import ContextSizes, permits
from archon_plan.constraints import backends, check_engine
from archon_plan.extents import context_sizes, expert_extents, sharded_extents
from archon_plan.parts import EngineRequest
from archon_plan.violations import Check

SHOWN = 3
"""Number of layouts to suggest."""

TRIED = 200
"""Most layouts to check, nearest first, before giving up."""


def write_layout(dims: ParallelDims, *, backend: str = "archon", moe: bool = False) -> str:
    """The shortest layout with these sizes: flat if the automatic expert tensor size is right, else hybrid.

    ::

        >>> write_layout(ParallelDims(pp=4, cp=2, tp=2, ep=4), moe=True)
        'archon:p4t2c2e4'
        >>> write_layout(ParallelDims(dp_shard=4, tp=2, ep=2, etp=2), moe=True)
        'archon:(attn:d4t2|ffn:t2e2)'
    """
    sizes = {"r": dims.dp_replicate, "d": dims.dp_shard, "p": dims.pp, "t": dims.tp, "c": dims.cp}
    dense = "".join(f"{letter}{size}" for letter, size in sizes.items() if size > 1)
    automatic = 1 if dims.ep > 1 else dims.tp
    if not moe or dims.etp == automatic:
        flat = dense + (f"e{dims.ep}" if moe and dims.ep > 1 else "")
        return f"{backend}:{flat or 'd1'}"
    experts = {"t": dims.etp, "e": dims.ep}
    ffn = "".join(f"{letter}{size}" for letter, size in experts.items() if size > 1)
    return f"{backend}:(attn:{dense or 'd1'}|ffn:{ffn or 't1'})"


def nearest_layouts(
    request: EngineRequest,
    check: Check,
    registry: Registry,
    *,
    accept: Callable[[EngineRequest, Check], bool] = lambda request, check: True,
    most: int = SHOWN,
    most_tried: int = TRIED,
) -> tuple[str, ...]:
    """Layouts without violations, nearest first: what the violations suggest, then others on as many ranks.

    Args:
        request: the engine whose layout does not work.
        check: its violations.
        registry: the installed plugins.
        accept: a further condition, such as that memory suffices.
        most: number of layouts to find.
        most_tried: number of layouts to check before giving up.
    """
    found: list[str] = []
    for tried, text in enumerate(dict.fromkeys(_candidates(request, check, registry))):
        if tried == most_tried or len(found) == most:
            break
        other = replace(request, layout=text)
        checked = check_engine(other, registry)
        if text != request.layout and not checked.violations and accept(other, checked):
            found.append(text)
    return tuple(found)


def _candidates(request: EngineRequest, check: Check, registry: Registry) -> Iterator[str]:
    table = backends(registry)
    suggested = [text for violation in check.violations for text in violation.suggestions]
    meant = list(working(suggested, table))
    yield from map(str, meant)
    wanted = check.layout or next((layout for layout in meant if layout.kind == "train"), None)
    if wanted is None:
        return
    if check.anatomy is not None and check.model is not None:
        anatomy, moe = check.anatomy, "moe" in check.model.needs
    else:  # the layout could not be parsed; a guess can
        guessed = check_engine(replace(request, layout=str(wanted)), registry)
        if guessed.anatomy is None or guessed.model is None:
            return
        anatomy, moe = guessed.anatomy, "moe" in guessed.model.needs
    style = request.config.archon.cp_style
    others = _Neighbours(wanted, anatomy, moe, wanted.engine.letters, style).dims()
    for dims in sorted(others, key=lambda dims: _distance(wanted, dims)):
        yield write_layout(dims, backend=wanted.backend, moe=moe)


def _distance(wanted: Layout, dims: ParallelDims) -> float:
    """Doublings and halvings between two layouts; those of d count less, because d changes no tensor's shape."""
    etp = wanted.etp or (1 if wanted.ep > 1 else wanted.dims["t"])
    pairs = (
        (wanted.dims["p"], dims.pp),
        (wanted.dims["r"], dims.dp_replicate),
        (wanted.dims["c"], dims.cp),
        (wanted.dims["t"], dims.tp),
        (wanted.ep, dims.ep),
        (etp, dims.etp),
    )
    return sum(abs(math.log2(a / b)) for a, b in pairs) + 0.5 * abs(math.log2(wanted.dims["d"] / dims.dp_shard))


@dataclass(frozen=True)
class _Neighbours:
    """All layouts of as many ranks that divide a model's sizes."""

    wanted: Layout
    anatomy: ModelAnatomy
    moe: bool
    letters: str
    cp_style: str

    def dims(self) -> Iterator[ParallelDims]:
        extents, heads = sharded_extents(self.anatomy), context_sizes(self.anatomy, ParallelDims()).query_heads
        world = self.wanted.world_size
        replicas = {1, self.wanted.dims["r"]} if "r" in self.letters else {1}
        for r in sorted(size for size in replicas if world % size == 0):
            for t in self._sizes("t", world // r):
                if not extents.allows_tensor(t):
                    continue
                for c in self._sizes("c", world // (r * t)):
                    if not permits(self.cp_style, ContextSizes(c, t, heads)):
                        continue
                    for p in self._sizes("p", world // (r * t * c)):
                        if p <= len(self.anatomy.layers) + 2:
                            yield from self._with_experts(p, r, world // (r * t * c * p), c, t, extents)

    def _with_experts(self, p: int, r: int, d: int, c: int, t: int, extents: ShardedExtents) -> Iterator[ParallelDims]:
        n_experts, inner = expert_extents(self.anatomy)
        for ep in self._sizes("e", d * c * t) if self.moe else [1]:
            if self.moe and n_experts % ep:
                continue
            automatic = 1 if ep > 1 else t
            kinds = {automatic, self.wanted.etp or automatic} if self.wanted.engine.hybrid else {automatic}
            for etp in sorted(kinds) if self.moe else [1]:
                if self.moe and inner % etp:
                    continue
                try:
                    yield ParallelDims(p, r, d, c, t, ep, etp)
                except LayoutError:
                    continue  # ep x etp does not divide the ranks

    def _sizes(self, letter: str, ranks: int) -> list[int]:
        """The sizes that an axis can have on a number of ranks."""
        if letter not in self.letters:
            return [1]
        return [size for size in range(1, ranks + 1) if ranks % size == 0]
