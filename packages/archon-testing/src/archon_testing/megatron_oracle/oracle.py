"""Verifies layouts against Megatron-Core on the same layouts. Imports neither torch nor Megatron; worlds do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from archon_core.errors import ArchonError, ConfigError
from archon_core.plugins import ModelSpec
from archon_testing.cases import Case, Variant, variant_case
from archon_testing.functions import FunctionReference
from archon_testing.megatron_oracle.architecture import check_model, refusal
from archon_testing.oracle import n_ranks_of, reference_folder
from archon_testing.requested import RequestedLayout
from archon_testing.requested_model import RequestedModel
from archon_testing.verdicts import RankReport, Verdict, joint_verdict
from archon_testing.verification import LayoutReport, too_few_layers
from archon_testing.worlds import WorldError, run_world

_RANKS = "archon_testing.megatron_oracle.ranks"
_DRAW = FunctionReference(_RANKS, "draw_weights")
_RUN = FunctionReference(_RANKS, "run_megatron_on_ranks")
_COMPARE = FunctionReference(_RANKS, "compare_with_megatron")

VARIANTS: tuple[Variant, ...] = ("untied", "tied")
"""Megatron has no value head and no adapters."""


class MegatronOracle:
    """Compares one step's loss, gradient norm and gradients with Megatron-Core's, in float32.

    Args:
        model: the model to verify.
        variants: some of ``VARIANTS``.
        micro_batches: numbers of micro-batches, where 1 stands for one per pipeline stage.
        seed: of weights and batches.
        folder: for weights and gradients.
        time_limit: seconds per case.

    Raises:
        ConfigError: the oracle cannot build the model in Megatron-Core.
    """

    def __init__(
        self,
        model: RequestedModel,
        variants: Sequence[Variant],
        micro_batches: Sequence[int],
        *,
        seed: int,
        folder: Path,
        time_limit: float = 120.0,
    ) -> None:
        check_model(model.entries)
        self._model, self._variants, self._numbers = model, variants, micro_batches
        self._seed, self._folder, self._time_limit = seed, folder, time_limit
        self._drawn: set[Path] = set()

    def verify(
        self, layouts: Sequence[tuple[RequestedLayout, str]], *, before: Callable[[], Any] | None = None
    ) -> Iterator[LayoutReport]:
        """Verify layouts one after the other.

        Args:
            layouts: each with the reason why Archon cannot run it; empty if it can.
            before: called on every rank of Archon before its first engine is built, as by ``Oracle.verify``.

        Raises:
            ArchonError: the model cannot be built, or no weights have clear choices of experts.
        """
        patch = None if before is None else FunctionReference.of(before)
        for layout, reason in layouts:
            entries = self._model.entries_for(layout.n_stages)
            reason = reason or too_few_layers(self._model, layout) or refusal(layout.layout, entries)
            if reason:
                yield LayoutReport(layout, (), refusal=reason)
                continue
            verdicts: list[Verdict] = []
            try:
                self._verify(self._cases(layout), verdicts, patch)
            except WorldError as error:
                yield LayoutReport(layout, verdicts, crash=str(error))
                continue
            refusals = [verdict.refusal for verdict in verdicts if verdict.refusal]
            yield LayoutReport(layout, verdicts, *refusals[:1])

    def _cases(self, layout: RequestedLayout) -> list[Case]:
        entries, first = self._model.entries_for(layout.n_stages), layout.n_stages - 1
        return [
            variant_case(
                entries,
                variant,
                layout=str(layout.layout),
                schedule=layout.schedule,
                n_mbs=number + first,
                dtype="float32",
                seed=self._seed,
                model=self._model.spec.name,
            )
            for variant in self._variants
            for number in self._numbers
        ]

    def _verify(self, cases: Sequence[Case], verdicts: list[Verdict], before: FunctionReference | None) -> None:
        jobs = [(case, reference_folder(self._folder, case)) for case in cases]
        self._draw([(case, folder) for case, folder in jobs if folder not in self._drawn])
        n_ranks = n_ranks_of(cases)
        with tempfile.TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True) as scratch:
            target, options = Path(scratch), {"time_limit": self._time_limit, "show_output": False}
            run_world(_RUN, n_ranks, (jobs, target), **options)
            reports: list[list[RankReport]] = [[] for _ in range(n_ranks)]

            def collect(rank: int, report: RankReport) -> None:
                reports[rank].append(report)
                while len(verdicts) < min(map(len, reports)):
                    verdicts.append(joint_verdict([of_rank[len(verdicts)] for of_rank in reports]))

            run_world(_COMPARE, n_ranks, (jobs, target, before), on_value=collect, **options)

    def _draw(self, missing: Sequence[tuple[Case, Path]]) -> None:
        """Write the weights of cases. Cases that differ in the number of micro-batches share them."""
        jobs = list({folder: (case, folder) for case, folder in missing}.values())
        errors: list[ArchonError] = []

        def done(rank: int, error: ArchonError | None) -> None:
            if error is not None:
                errors.append(error)

        if jobs:
            run_world(_DRAW, 1, (jobs,), time_limit=self._time_limit, on_value=done, show_output=False)
        if errors:
            raise errors[0]
        self._drawn |= {folder for _, folder in jobs}


def choose_megatron_variants(spec: ModelSpec, names: Sequence[str]) -> tuple[Variant, ...]:
    """The variants ``names``; all of a model that the oracle has, if empty.

    Raises:
        ConfigError: the oracle has no such variant.
    """
    declared = tuple(variant for variant in VARIANTS if variant == "untied" or variant in spec.capabilities)
    for name in names:
        if name not in declared:
            raise ConfigError(
                f"--variant: found {name!r} with --oracle megatron; allowed are {', '.join(declared)}, because "
                "Megatron-Core has neither value heads nor adapters; verify it without --oracle"
            )
    return tuple(variant for variant in declared if not names or variant in names)
