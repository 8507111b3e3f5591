"""Every layout that ``archon verify --all`` looks at, and the cases that each runs: pure, the same every time.

Legend: p stages, r replicas, d data, c context and t tensor ranks, e expert ranks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from archon_engine.models.capabilities import CAPABILITY_OF_AXIS
from archon_testing.cases import Case, Check, DtypeName, Variant

RANK_LETTERS = "prdct"
"""In the order in which layouts are written: outermost first."""


def candidate_layouts(
    axes: str, capabilities: Collection[str], world: int, *, schedules: Sequence[str] = ()
) -> list[str]:
    """The dims of every layout of at most ``world`` ranks, such as ``r2d2t2``; whether they fit a model is not asked.

    ``e`` takes every size that divides d x c x t. A layout with pipeline stages runs with the engine's own schedule;
    ``p2`` alone also with each of ``schedules``. Where ``e`` is usable, hybrid layouts follow (``hybrid_layouts``).

    Args:
        axes: letters that the engine runs with a size above 1.
        capabilities: what the model declares.
        world: most ranks.
        schedules: names of pipeline schedules.

    Returns:
        By number of ranks, then of axes; ``d1`` first.
    """

    def usable(letter: str) -> bool:
        return letter in axes and (letter not in CAPABILITY_OF_AXIS or CAPABILITY_OF_AXIS[letter] in capabilities)

    ranges = [range(1, world + 1) if usable(letter) else range(1, 2) for letter in RANK_LETTERS]
    found = []
    for sizes in itertools.product(*ranges):
        if math.prod(sizes) > world:
            continue
        own = dict(zip(RANK_LETTERS, sizes, strict=True))
        sharding = own["d"] * own["c"] * own["t"]
        for experts in range(1, sharding + 1) if usable("e") else (1,):
            if sharding % experts == 0:
                found.append({**own, "e": experts})
    found.sort(key=lambda own: (_ranks(own), sum(size > 1 for size in own.values()), tuple(-n for n in own.values())))
    texts = [_text(own) for own in found]
    if "p2" in texts:
        after = texts.index("p2") + 1
        texts[after:after] = [f"p2-{schedule}" for schedule in schedules]
    return texts + hybrid_layouts([own for own in found if own["e"] == 1]) if usable("e") else texts


def hybrid_layouts(dense: Sequence[Mapping[str, int]]) -> list[str]:
    """Layouts whose experts are cut as no flat string can say, such as ``(attn:d2t2|ffn:t2e2)``.

    Each of ``dense`` without stages and replicas, which change nothing about that, gets one; among those of equally
    many ranks, every size of ep and etp has its turn.

    Args:
        dense: letter -> size of the attention parts.
    """
    of_size: dict[int, int] = {}
    texts = []
    for own in dense:
        n_ranks = _ranks(own)
        if own["p"] * own["r"] > 1 or n_ranks == 1:
            continue
        divisors = [n for n in range(1, n_ranks + 1) if n_ranks % n == 0]
        # A flat string takes etp for 1 beside e, and for t without.
        unwritten = [
            (ep, etp)
            for ep, etp in itertools.product(divisors, divisors)
            if n_ranks % (ep * etp) == 0 and etp != (1 if ep > 1 else own["t"])
        ]
        turn = of_size[n_ranks] = of_size.get(n_ranks, -1) + 1
        if unwritten:
            ep, etp = unwritten[turn % len(unwritten)]
            texts.append(f"(attn:{_text({**own, 'e': 1})}|ffn:t{etp}e{ep})")
    return texts


@dataclass(frozen=True)
class Design:
    """Which cases a layout runs.

    Attributes:
        dtypes: types of numbers.
        variants: of the model.
        counts: least numbers of micro-batches, where a pipeline has 1 for as many as stages, 2 for one more, and so on.
        full: every product of the three. Otherwise a few cases in which every type meets every variant and every
            count, and from layout to layout other variants meet other counts.
    """

    dtypes: Sequence[DtypeName]
    variants: Sequence[Variant]
    counts: Sequence[int]
    full: bool

    def cases(self, of_variant: dict[Variant, Case], number: int = 0, *, n_stages: int = 1) -> list[Case]:
        """The cases of the layout that stands at place ``number``.

        After the runs come the weights that no checkpoint gives, for every variant, and runs that a new engine takes
        up from a checkpoint: every variant in a full design, else one. Both in the first type only: float64, unless it
        was left out.

        Args:
            of_variant: a case of the layout for each variant.
            number: shifts what meets what.
            n_stages: of the layout. A pipeline runs at least as many micro-batches, so they are counted from there.
        """
        cases = [
            replace(of_variant[variant], dtype=dtype, n_mbs=count + n_stages - 1)
            for dtype, variant, count in self._training(number)
        ]
        # Gathering looks at every weight of every rank again; a layout does it in one way, whatever the case.
        cases[0] = replace(cases[0], gathers=True)
        again = self.variants if self.full else [self.variants[number % len(self.variants)]]
        extra: list[tuple[Check, Variant]] = [("initial", variant) for variant in self.variants]
        extra += [("resume", variant) for variant in again]
        return cases + [replace(of_variant[v], dtype=self.dtypes[0], n_mbs=1, check=check) for check, v in extra]

    def _training(self, number: int) -> Iterator[tuple[DtypeName, Variant, int]]:
        if self.full:
            yield from itertools.product(self.dtypes, self.variants, self.counts)
            return
        variants, counts = self.variants, self.counts
        for shift, dtype in enumerate(self.dtypes, start=number):
            for i in range(max(len(variants), len(counts))):
                yield dtype, variants[i % len(variants)], counts[(i + shift) % len(counts)]


def _ranks(sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[letter] for letter in RANK_LETTERS)


def _text(sizes: Mapping[str, int]) -> str:
    return "".join(f"{letter}{size}" for letter, size in sizes.items() if size > 1) or "d1"
