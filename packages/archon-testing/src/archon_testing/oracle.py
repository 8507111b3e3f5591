"""The equivalence oracle: the same weights and batches on one process and on a layout must give the same numbers.

::

    with tempfile.TemporaryDirectory() as folder:
        oracle = Oracle(Path(folder))
        [verdict] = oracle.verify([Case(model_config, layout="archon:d2t2", n_mbs=2)])
        assert verdict.passed, verdict.comparison

Models are built and compared in the ranks of worlds; this process needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from archon_core.errors import ArchonError, ConfigError
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import TrainEngineSpec, registry
from archon_testing.cases import Case
from archon_testing.functions import FunctionReference
from archon_testing.verdicts import Verdict, worst_of
from archon_testing.worlds import run_world

_RANKS = "archon_testing.oracle_ranks"
_COMPUTE = FunctionReference(_RANKS, "compute_references")
_HOLD = FunctionReference(_RANKS, "hold_against_references")

OnCase = Callable[[Case], None]
OnVerdict = Callable[[Verdict], None]


class Oracle:
    """Verifies cases; what one process computes is computed once and kept in a folder.

    Args:
        folder: for weights and records of references.
        time_limit: seconds that a case may take.
    """

    def __init__(self, folder: Path, *, time_limit: float = 120.0) -> None:
        self._folder = folder
        self._time_limit = time_limit
        self._prepared: set[Path] = set()

    def count_missing(self, cases: Sequence[Case]) -> int:
        """How many references ``prepare`` would compute."""
        return len(self._missing(cases))

    def prepare(self, cases: Sequence[Case], *, on_reference: OnCase | None = None) -> None:
        """Compute the references that ``cases`` need and that are not there yet.

        Args:
            cases: of any layouts.
            on_reference: called with each reference that is done.

        Raises:
            ArchonError: the model cannot be built or trained.
            WorldError: the process failed.
        """
        missing = self._missing(cases)
        if not missing:
            return
        for _, folder in missing:
            folder.mkdir(parents=True, exist_ok=True)
        left = iter(missing)

        def done(rank: int, error: ArchonError | None) -> None:
            case, folder = next(left)
            if error is not None:
                raise error
            self._prepared.add(folder)
            if on_reference is not None:
                on_reference(case)

        run_world(_COMPUTE, 1, (missing,), time_limit=self._time_limit, on_value=done, show_output=False)

    def verify(
        self, cases: Sequence[Case], *, before: Callable[[], Any] | None = None, on_verdict: OnVerdict | None = None
    ) -> list[Verdict]:
        """Run cases of one layout in one world and hold each against its reference.

        Args:
            cases: all of the same layout and schedule.
            before: called on every rank before the first engine is built; at the top level of a module or test file.
            on_verdict: called with each verdict as it comes.

        Returns:
            Verdicts in the order of the cases, each the worst of all ranks.

        Raises:
            ConfigError: the cases have different layouts, or none was given.
            ArchonError: the model cannot be built, or the layout is malformed.
            WorldError: a rank failed or hung.
        """
        layouts = {(case.layout, case.schedule) for case in cases}
        if len(layouts) != 1:
            raise ConfigError(f"verify: found cases of {len(layouts)} layouts; give those of one layout at a time")
        self.prepare(cases)
        backends = backend_table(registry().all(TrainEngineSpec))
        n_ranks = parse_layout(cases[0].layout, backends=backends).world_size
        seen: list[list[Verdict]] = [[] for _ in range(n_ranks)]
        verdicts: list[Verdict] = []

        def collect(rank: int, verdict: Verdict) -> None:
            seen[rank].append(verdict)
            while len(verdicts) < min(map(len, seen)):
                verdicts.append(_of_all_ranks([of_rank[len(verdicts)] for of_rank in seen]))
                if on_verdict is not None:
                    on_verdict(verdicts[-1])

        jobs = [(case, self._place(case)) for case in cases]
        patch = None if before is None else FunctionReference.of(before)
        run_world(_HOLD, n_ranks, (jobs, patch), time_limit=self._time_limit, on_value=collect, show_output=False)
        return verdicts

    def _missing(self, cases: Sequence[Case]) -> list[tuple[Case, Path]]:
        places = {self._place(case): case.reference for case in cases}
        return [(case, folder) for folder, case in places.items() if folder not in self._prepared]

    def _place(self, case: Case) -> Path:
        """The folder of the case's reference, named by everything that its numbers depend on."""
        content = json.dumps(vars(case.reference), sort_keys=True, default=str)
        return self._folder / hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _of_all_ranks(verdicts: Sequence[Verdict]) -> Verdict:
    case = verdicts[0].case
    refusals = [verdict.refusal for verdict in verdicts if verdict.refusal]
    if refusals:
        return Verdict(case, None, refusals[0])
    return Verdict(case, worst_of(verdict.comparison for verdict in verdicts if verdict.comparison is not None))
