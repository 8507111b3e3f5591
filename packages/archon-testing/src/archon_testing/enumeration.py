"""Enumerates the layouts of ``archon verify --all`` and the cases of each. Pure and deterministic.

Legend: p stages, r replicas, d data, c context and t tensor ranks, e expert ranks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from archon_engine.models.capabilities import CAPABILITY_OF_AXIS
from archon_testing.cases import LORA, Case, DtypeName, Recompute, Variant

RANK_LETTERS = "prdct"
"""Axis letters in layout order, outermost first."""

RECOMPUTES: tuple[Recompute, ...] = ("full", "selective")
"""Modes of activation checkpointing, alternated over the layouts."""


def candidate_layouts(
    axes: str, capabilities: Collection[str], world: int, *, schedules: Sequence[str] = ()
) -> list[str]:
    """The dims of every layout of at most ``world`` ranks, such as ``r2d2t2``, whether or not they fit the model's
    sizes.

    ``e`` takes every size that divides d x c x t. Layouts with pipeline stages run with the engine's default schedule;
    ``p2`` also with each of ``schedules``. If ``e`` is usable, hybrid layouts follow (``hybrid_layouts``).

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
    """Hybrid layouts, whose expert sharding a flat string cannot express, such as ``(attn:d2t2|ffn:t2e2)``.

    Gives one for each of ``dense`` without stages and replicas, which do not matter here; among layouts with equally
    many ranks, the sizes of ep and etp alternate.

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
        # In a flat string, etp is 1 with e, and t without e.
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
    """The cases to run per layout.

    Attributes:
        dtypes: dtypes of the training runs.
        variants: of the model.
        counts: numbers of micro-batches; in a pipeline, 1 stands for the number of stages, 2 for one more, and so on.
        full: run the full product of the three. Otherwise run a few cases: every variant and every count in the first
            dtype, one case in each further dtype, with combinations that alternate from layout to layout.
        precision: dtype of the reference for the bfloat16 step; ``None`` without that step.
    """

    dtypes: Sequence[DtypeName]
    variants: Sequence[Variant]
    counts: Sequence[int]
    full: bool
    precision: DtypeName | None = None

    def cases(
        self,
        of_variant: Mapping[Variant, Case],
        number: int = 0,
        *,
        n_stages: int = 1,
        sums_gradients: bool = False,
        resume_on: Sequence[tuple[str, str | None]] = (),
    ) -> list[Case]:
        """The cases of layout ``number``.

        First the training runs, one of which recomputes activations and one exports its weights; then initial weights
        without a checkpoint, the bfloat16 step, and resumed runs. The latter use the first dtype and one variant, which
        alternates from layout to layout, or every variant in a full design.

        Args:
            of_variant: a case of the layout for each variant.
            number: offset of the alternation.
            n_stages: of the layout: a pipeline's least number of micro-batches.
            sums_gradients: whether gradients are summed over ranks. If not, the bfloat16 step has two micro-batches, so
                that there is a sum.
            resume_on: layouts, with schedules, that resume from this one's state; one process last. A full design, or a
                layout without others, also resumes on the same layout.
        """
        fewest = n_stages - 1
        found = [
            replace(of_variant[variant], dtype=dtype, n_mbs=count + fewest, recompute=recompute)
            for dtype, variant, count, recompute in self._training(number)
        ]
        some = self.variants if self.full else [self.variants[number % len(self.variants)]]
        for variant in some:
            place = next((i for i, case in enumerate(found) if case.variant == variant), None)
            # Merged weights are in no rank's memory, so there is nothing to compare their files with.
            if place is not None and variant != LORA:
                found[place] = replace(found[place], exports=True)
        if self.dtypes and of_variant[some[0]].prefixes == "distinct":  # initial weights depend on no batch
            found += [replace(of_variant[v], dtype=self.dtypes[0], check="initial") for v in some]
        if self.precision:
            n_mbs = fewest + (1 if sums_gradients else 2)
            others = self.variants if self.full else [self.variants[(number + 1) % len(self.variants)]]
            found += [replace(of_variant[v], dtype=self.precision, n_mbs=n_mbs, check="precision") for v in others]
        if self.dtypes:
            same: list[tuple[str | None, str | None]] = [(None, None)] if self.full or len(resume_on) < 2 else []
            found += [
                replace(of_variant[v], dtype=self.dtypes[0], check="resume", resume_on=layout, resume_schedule=schedule)
                for layout, schedule in (*same, *resume_on)
                for v in some
            ]
        return found

    def _training(self, number: int) -> Iterator[tuple[DtypeName, Variant, int, Recompute]]:
        """(dtype, variant, count, recompute) of the training runs. One run of the first dtype, with the fewest
        micro-batches, recomputes; in a full design, one per variant. If no run is left for that, one is added."""
        for dtype in self.dtypes:
            runs = self._runs(number, is_first=dtype == self.dtypes[0])
            again: list[tuple[Variant, int]] = []
            if dtype == self.dtypes[0]:
                cheap = [run for run in runs if run[1] == self.counts[0]]
                again = cheap if self.full else [cheap[number % len(cheap)]]
            for run in runs:
                recompute: Recompute = "none"
                if run in again:
                    recompute = RECOMPUTES[(number + again.index(run)) % len(RECOMPUTES)]
                    if len(runs) == len(again):
                        yield dtype, *run, "none"
                yield dtype, *run, recompute

    def _runs(self, number: int, *, is_first: bool) -> list[tuple[Variant, int]]:
        """Variants and counts of a dtype: all in the first dtype, one in further dtypes."""
        variants, counts = self.variants, self.counts
        if self.full:
            return list(itertools.product(variants, counts))
        if not is_first:
            return [(variants[number % len(variants)], counts[(number // len(variants)) % len(counts)])]
        n_runs = max(len(variants), len(counts))
        return [(variants[i % len(variants)], counts[(i + number) % len(counts)]) for i in range(n_runs)]


def _ranks(sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[letter] for letter in RANK_LETTERS)


def _text(sizes: Mapping[str, int]) -> str:
    return "".join(f"{letter}{size}" for letter, size in sizes.items() if size > 1) or "d1"
