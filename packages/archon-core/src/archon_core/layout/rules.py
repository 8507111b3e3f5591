"""The rules between the sizes of a layout, one function per rule. Each yields faults.

``parse_layout`` raises the first fault; a caller that explains a layout can show them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from archon_core.layout.axes import AXIS_NAMES, RANK_LETTERS, AxisSizes, list_letters
from archon_core.layout.backends import Backend
from archon_core.layout.diagnostics import Fault, count
from archon_core.layout.layout import Layout, Part
from archon_core.layout.nearest import largest_divisor, largest_expert_sizes, smallest_data_size

PART_LETTERS: Mapping[Part, str] = {"attn": "dtpcr", "ffn": "dtpe"}


def faults(layout: Layout, backends: Mapping[str, Backend]) -> Iterator[Fault]:
    """All faults of a parsed layout, most important first."""
    yield from _backend_letters(layout, backends)
    yield from _backend_form(layout, backends)
    if layout.ffn is None:
        yield from _flat_experts(layout)
        return
    misplaced = list(_part_letters(layout, layout.ffn))
    yield from misplaced
    yield from _same_pipeline(layout, layout.ffn)
    if not misplaced:
        yield from _same_ranks(layout, layout.ffn)


def _parts(layout: Layout) -> Iterator[tuple[Part, AxisSizes]]:
    yield "attn", layout.dims
    if layout.ffn is not None:
        yield "ffn", layout.ffn


def _backend_letters(layout: Layout, backends: Mapping[str, Backend]) -> Iterator[Fault]:
    """A letter that the backend lacks may have size 1 only."""
    engine = layout.engine
    for part, sizes in _parts(layout):
        for letter, size in sizes:
            if size == 1 or letter in engine.letters:
                continue
            others = [
                replace(layout, engine=other)
                for other in backends.values()
                if other.kind == engine.kind and letter in other.letters
            ]
            without = without_axes(layout, letter) if part == "attn" else replace(layout, ffn=None)
            yield Fault(
                spans=(layout.span(letter, part),),
                found=f"{AXIS_NAMES[letter]} ({letter}{size}), which {engine.name} does not have",
                allowed=f"for {engine.name}, sizes above 1 of {list_letters(engine.letters)} only",
                candidates=(str(without), *map(str, others)),
            )


def _backend_form(layout: Layout, backends: Mapping[str, Backend]) -> Iterator[Fault]:
    if layout.ffn is None or layout.engine.hybrid:
        return
    hybrid = [backend for backend in backends.values() if backend.hybrid and backend.kind == layout.kind]
    yield Fault(
        spans=((len(f"{layout.backend}:"), len(str(layout))),),
        found=f"a hybrid layout for {layout.backend}, which takes flat ones only",
        allowed=f"(attn:...|ffn:...) for {', '.join(backend.name for backend in hybrid) or 'no engine of this kind'}",
        candidates=(*(str(replace(layout, engine=backend)) for backend in hybrid), str(replace(layout, ffn=None))),
    )


def _part_letters(layout: Layout, ffn: AxisSizes) -> Iterator[Fault]:
    for part, sizes in _parts(layout):
        for letter, size in sizes:
            if letter in PART_LETTERS[part]:
                continue
            if part == "attn":
                moved = replace(layout, dims=layout.dims.without(letter), ffn=ffn.resized(letter, size))
            else:
                moved = replace(layout, dims=layout.dims.resized(letter, size), ffn=ffn.without(letter))
            dropped = replace(layout, dims=layout.dims.without("e"), ffn=ffn.without("cr"))
            yield Fault(
                spans=(layout.span(letter, part),),
                found=f"{AXIS_NAMES[letter]} ({letter}{size}) in the {part} part",
                allowed=f"{list_letters(PART_LETTERS[part])} in the {part} part",
                candidates=(str(moved), str(dropped), str(with_derived_data(moved))),
            )


def _same_pipeline(layout: Layout, ffn: AxisSizes) -> Iterator[Fault]:
    attn_p, ffn_p = layout.dims["p"], ffn["p"]
    if "p" in ffn and ffn_p != attn_p:
        yield Fault(
            spans=(layout.span("p", "attn"), layout.span("p", "ffn")),
            found=f"{count(attn_p, 'pipeline stage')} for attention and {ffn_p} for the experts",
            allowed="the same p in both parts, or none in the ffn part",
            candidates=(
                str(replace(layout, ffn=ffn.resized("p", attn_p))),
                str(replace(layout, dims=layout.dims.resized("p", ffn_p))),
            ),
        )


def _flat_experts(layout: Layout) -> Iterator[Fault]:
    """With e > 1 the automatic expert tensor size is 1, so that e alone must divide the ranks.

    An inference server shards experts itself, so the rule does not apply.
    """
    ranks, ep = layout.sharding_size, layout.ep
    if layout.kind == "inference" or ranks % ep == 0:
        return
    sizes = layout.dims
    more_data = smallest_data_size(sizes["d"], sizes.product("ct"), ep)
    fewer = largest_divisor(ranks, ep)
    yield Fault(
        spans=(layout.span("e"),),
        found=(
            f"e{ep}, which needs a multiple of {ep} ranks in each pipeline stage, "
            f"on {count(ranks, 'rank')} ({_product(sizes, 'dct')})"
        ),
        allowed="an e that divides d x c x t",
        candidates=(
            str(replace(layout, dims=sizes.resized("d", more_data))),
            str(replace(layout, dims=sizes.resized("e", fewer) if fewer > 1 else sizes.without("e"))),
        ),
    )


def _same_ranks(layout: Layout, ffn: AxisSizes) -> Iterator[Fault]:
    """d x e x t of the experts equals d x c x t of attention, or divides it if d is derived."""
    ranks, group = layout.sharding_size, ffn.product("et")
    if "d" in ffn and ffn["d"] * group == ranks:
        return
    if "d" not in ffn and ranks % group == 0:
        return
    if "d" in ffn:
        found = f"{ffn['d'] * group} ranks for the experts ({_product(ffn, 'det')})"
        allowed = "the same number on both sides, or no d in the ffn part"
    else:
        found = f"experts that need a multiple of {group} ranks ({_product(ffn, 'et')})"
        allowed = "e x t of the ffn part divides d x c x t of attention"
    yield Fault(
        spans=(layout.part_span("attn"), layout.part_span("ffn")),
        found=f"{found} against {ranks} for attention ({_product(layout.dims, 'dct')}) in each pipeline stage",
        allowed=allowed,
        candidates=tuple(map(str, _with_same_ranks(layout, ffn))),
    )


def _with_same_ranks(layout: Layout, ffn: AxisSizes) -> Iterator[Layout]:
    attn, ranks, group = layout.dims, layout.sharding_size, ffn.product("et")

    def folded(dims: AxisSizes, experts: AxisSizes) -> Layout:
        """Set the experts' data size, if given, to the remaining ranks."""
        left = dims.product("dct") // experts.product("et")
        return replace(layout, dims=dims, ffn=experts.resized("d", left) if "d" in experts else experts)

    if ranks % group == 0:
        yield folded(attn, ffn)
    if (ffn["d"] * group) % attn.product("ct") == 0:
        yield folded(attn.resized("d", ffn["d"] * group // attn.product("ct")), ffn)
    yield folded(attn.resized("d", smallest_data_size(attn["d"], attn.product("ct"), group)), ffn)
    ep, etp = largest_expert_sizes(ranks, ffn["e"], ffn["t"])
    yield folded(attn, ffn.resized("e", ep).resized("t", etp))


def without_axes(layout: Layout, letters: str) -> Layout:
    """The layout without ``letters``, with a larger d (in servers, t) to keep the number of ranks."""
    absorber = "t" if layout.kind == "inference" and "t" in layout.engine.letters else "d"
    dims = layout.dims.without(letters)
    if absorber not in letters:
        moved = "".join(letter for letter in RANK_LETTERS if letter in letters)
        dims = dims.resized(absorber, dims[absorber] * layout.dims.product(moved))
    return replace(layout, dims=dims)


def with_derived_data(layout: Layout) -> Layout:
    """The layout without d in its ffn part, so that it is derived."""
    if layout.ffn is None or "d" not in layout.ffn or len(layout.ffn.pairs) == 1:
        return layout
    return replace(layout, ffn=layout.ffn.without("d"))


def _product(sizes: AxisSizes, letters: str) -> str:
    """``d x c x t = 2 x 1 x 2``."""
    return f"{' x '.join(letters)} = {' x '.join(str(sizes[letter]) for letter in letters)}"
