"""The equivalence oracle: the same weights and batches on one process and on a layout must give the same numbers.

::

    with tempfile.TemporaryDirectory() as folder:
        oracle = Oracle(Path(folder))
        [verdict] = oracle.verify([Case(model_config, layout="archon:d2t2", n_mbs=2)])
        assert verdict.passed, verdict.comparison

Models are built and compared in the ranks of worlds; the calling process imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archon_core.errors import ArchonError, ConfigError
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import TrainEngineSpec, registry
from archon_testing.cases import Case
from archon_testing.diagnosis import Diagnosis
from archon_testing.functions import FunctionReference
from archon_testing.verdicts import RankReport, Verdict, joint_verdict
from archon_testing.worlds import MOST_RANKS, World, WorldError, run_world, run_worlds

MOST_REFERENCES_AT_ONCE = 4
"""Largest number of processes that compute references at once."""

_RANKS = "archon_testing.oracle_ranks"
_COMPUTE = FunctionReference(_RANKS, "compute_references")
_COMPARE = FunctionReference(_RANKS, "compare_with_references")

_DIAGNOSING = "archon_testing.diagnosing"
_OUTPUTS = FunctionReference(_DIAGNOSING, "write_outputs")
_DIAGNOSE = FunctionReference(_DIAGNOSING, "diagnose")
_ALONE = FunctionReference(_DIAGNOSING, "differs_on_one_process")

OnCase = Callable[[Case], None]
OnVerdict = Callable[[Verdict], None]


@dataclass(frozen=True)
class Outcome:
    """The results of one layout's cases.

    Attributes:
        verdicts: of the completed cases, in order, each the worst of all ranks.
        crash: the error that ended the layout's world early; ``None`` if there was none.
    """

    verdicts: Sequence[Verdict]
    crash: WorldError | None = None


class Oracle:
    """Verifies cases. Computes each reference once and caches it in a folder.

    Args:
        folder: for weights and records of references.
        time_limit: seconds per case.
        ranks_at_once: largest number of ranks to run at once.
    """

    def __init__(self, folder: Path, *, time_limit: float = 120.0, ranks_at_once: int = MOST_RANKS) -> None:
        self._folder = folder
        self._time_limit = time_limit
        self._ranks_at_once = ranks_at_once
        self._prepared: set[Path] = set()

    def count_missing(self, cases: Sequence[Case]) -> int:
        """The number of references that ``prepare`` would compute."""
        return len(self._missing(cases))

    def prepare(self, cases: Sequence[Case], *, on_reference: OnCase | None = None) -> None:
        """Compute the missing references of ``cases``.

        Args:
            cases: of any layouts.
            on_reference: called after each reference.

        Raises:
            ArchonError: the model cannot be built or trained.
            WorldError: the process failed.
        """
        missing = self._missing(cases)
        n_worlds = min(len(missing), self._ranks_at_once, MOST_REFERENCES_AT_ONCE)
        worlds = [self._world_of_references(missing[first::n_worlds], on_reference) for first in range(n_worlds)]
        with closing(run_worlds(worlds, ranks_at_once=self._ranks_at_once)) as ended:
            for _, outcome in ended:
                if isinstance(outcome, WorldError):
                    raise outcome

    def verify(
        self, cases: Sequence[Case], *, before: Callable[[], Any] | None = None, on_verdict: OnVerdict | None = None
    ) -> list[Verdict]:
        """Run cases of one layout in one world and compare each with its reference.

        Args:
            cases: all of the same layout and schedule.
            before: called on every rank before the first engine is built; a function at the top level of a module or
                test file.
            on_verdict: called with each verdict.

        Returns:
            Verdicts in the order of the cases, each the worst of all ranks.

        Raises:
            ConfigError: the cases have different layouts, or none was given.
            ArchonError: the model cannot be built, or the layout is malformed.
            WorldError: a rank failed or hung.
        """
        [(_, outcome)] = self.verify_layouts([cases], before=before, on_verdict=on_verdict)
        if outcome.crash is not None:
            raise outcome.crash
        return list(outcome.verdicts)

    def verify_layouts(
        self,
        groups: Sequence[Sequence[Case]],
        *,
        before: Callable[[], Any] | None = None,
        on_verdict: OnVerdict | None = None,
    ) -> Iterator[tuple[int, Outcome]]:
        """``verify`` for several layouts in parallel.

        Args:
            groups: the cases of each layout.
            before: as in ``verify``.
            on_verdict: as in ``verify``, for all groups.

        Yields:
            The index of a group and its outcome, as soon as its world has ended.
        """
        self.prepare([case for cases in groups for case in cases])
        verdicts: list[list[Verdict]] = [[] for _ in groups]
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="cases-", ignore_cleanup_errors=True) as scratch:
            worlds = []
            for place, cases in enumerate(groups):
                (own := Path(scratch, str(place))).mkdir()
                worlds.append(self._world_of_cases(cases, verdicts[place], own, before, on_verdict))
            with closing(run_worlds(worlds, ranks_at_once=self._ranks_at_once)) as ended:
                for place, outcome in ended:
                    yield place, Outcome(verdicts[place], outcome if isinstance(outcome, WorldError) else None)

    def diagnose(self, outcome: Outcome, *, before: Callable[[], Any] | None = None) -> list[Diagnosis]:
        """Rerun failing cases of a layout, and find where their errors first appear.

        Diagnoses one case per failing check, in float64 if it fails there; resumed runs and the bfloat16 step only if
        training runs pass.

        Raises:
            WorldError: a rank failed or hung during the diagnosis.
        """
        chosen: dict[str, Verdict] = {}
        for verdict in outcome.verdicts:
            if verdict.comparison is None or verdict.passed:
                continue
            known = chosen.get(verdict.case.check)
            if known is None or (known.case.dtype != "float64" and verdict.case.dtype == "float64"):
                chosen[verdict.case.check] = verdict
        if "training" in chosen:
            chosen = {check: verdict for check, verdict in chosen.items() if check in ("training", "initial")}
        return [self._diagnose(verdict, outcome.verdicts, before) for verdict in chosen.values()]

    def _diagnose(self, verdict: Verdict, verdicts: Sequence[Verdict], before: Callable[[], Any] | None) -> Diagnosis:
        case, failed = verdict.case, verdict.comparison.failed if verdict.comparison is not None else ()
        patch = None if before is None else FunctionReference.of(before)
        folder, options = self._place(case), {"time_limit": self._time_limit, "show_output": False}
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="diagnosis-", ignore_cleanup_errors=True) as scratch:
            own, alone = Path(scratch, "own"), Path(scratch, "alone")
            own.mkdir()
            alone.mkdir()
            # First: an error that also occurs on one process is not caused by the layout.
            differs, remark = False, []
            try:
                [differs] = run_world(_ALONE, 1, (case, failed, folder, alone, patch), **options)
            except WorldError as error:
                remark = [f"whether one process differs likewise is not known: {error.first.summary}"]
            remark = [_of_one_process(case)] if differs else remark
            if case.check in ("training", "precision"):
                run_world(_OUTPUTS, 1, (case, folder), **options)
            diagnosis = run_world(_DIAGNOSE, n_ranks_of([case]), (case, folder, own, patch), **options)[0]
        remarks = (*diagnosis.remarks, *_of_siblings(case, verdicts), *remark)
        return replace(diagnosis, alone=differs, remarks=remarks)

    def _world_of_references(self, missing: Sequence[tuple[Case, Path]], on_reference: OnCase | None) -> World:
        left = iter(missing)
        for _, folder in missing:
            folder.mkdir(parents=True, exist_ok=True)

        def done(rank: int, error: ArchonError | None) -> None:
            case, folder = next(left)
            if error is not None:
                raise error
            self._prepared.add(folder)
            if on_reference is not None:
                on_reference(case)

        return World(_COMPUTE, 1, (missing,), self._time_limit, done, show_output=False)

    def _world_of_cases(
        self,
        cases: Sequence[Case],
        verdicts: list[Verdict],
        scratch: Path,
        before: Callable[[], Any] | None,
        on_verdict: OnVerdict | None,
    ) -> World:
        """A world that appends to ``verdicts``."""
        n_ranks = n_ranks_of(cases)
        seen: list[list[RankReport]] = [[] for _ in range(n_ranks)]

        def collect(rank: int, report: RankReport) -> None:
            seen[rank].append(report)
            while len(verdicts) < min(map(len, seen)):
                verdicts.append(joint_verdict([of_rank[len(verdicts)] for of_rank in seen]))
                if on_verdict is not None:
                    on_verdict(verdicts[-1])

        jobs = [(case, self._place(case)) for case in cases]
        patch = None if before is None else FunctionReference.of(before)
        return World(_COMPARE, n_ranks, (jobs, scratch, patch), self._time_limit, collect, show_output=False)

    def _missing(self, cases: Sequence[Case]) -> list[tuple[Case, Path]]:
        places = {self._place(case): case.reference for case in cases}
        return [(case, folder) for folder, case in places.items() if folder not in self._prepared]

    def _place(self, case: Case) -> Path:
        return reference_folder(self._folder, case)


def reference_folder(parent: Path, case: Case) -> Path:
    """The folder of the case's reference, named by a hash of everything that its values depend on."""
    content = json.dumps(vars(case.reference), sort_keys=True, default=str)
    return parent / hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def _of_one_process(case: Case) -> str:
    """The remark that one process differs, too."""
    does = [f"with {case.n_mbs} micro-batches"] if case.n_mbs > 1 else []
    does += [f"with ac_mode {case.recompute}"] if case.recompute != "none" else []
    what = " and ".join(does)
    return f"one process{' ' * bool(what)}{what} differs likewise: it is no matter of the layout"


def _of_siblings(case: Case, verdicts: Sequence[Verdict]) -> list[str]:
    """Remarks of a resumed run: whether other layouts resume from the same state, which separates saving from
    loading."""
    if case.check != "resume":
        return []
    others = [v for v in verdicts if v.case.check == "resume" and v.case.reference == case.reference]
    right = [v.case.resumed_on or v.case.layout for v in others if v.passed]
    if right:
        return [f"what {case.layout} saved is right: {' and '.join(right)} went on with it rightly; look at loading"]
    if len(others) > 1:
        return [f"no layout goes on rightly with what {case.layout} saved: look at saving first"]
    return []


def n_ranks_of(cases: Sequence[Case]) -> int:
    """The number of ranks of the layout of all ``cases``. Raises ConfigError if layouts differ or there are no
    cases."""
    layouts = {(case.layout, case.schedule) for case in cases}
    if len(layouts) != 1:
        raise ConfigError(
            f"verify: found cases of {len(layouts)} layouts; allowed is one per call; call it once per layout"
        )
    backends = backend_table(registry().all(TrainEngineSpec))
    return parse_layout(cases[0].layout, backends=backends).world_size
