"""What the ranks of a failing case find together: the first wrong module, parameter or number, and its likely cause.

Every rank sees its own pieces. What is wrong anywhere is exchanged, and all ranks draw the same conclusions from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import TrainEngineSpec, registry
from archon_core.ranks.ranks import Ranks
from archon_testing.cases import Case
from archon_testing.causes import (
    Coordinates,
    cause_of_copies,
    cause_of_factor,
    cause_of_norm,
    cause_of_number,
    cause_of_tensor,
)
from archon_testing.compare import magnitude, relative_error
from archon_testing.diagnosis import Cause, Diagnosis, Finding, shared_place
from archon_testing.engines import CHECKPOINT, build_engine
from archon_testing.module_outputs import Outputs, is_partial_sum, own_and_expected, plan_of, record_outputs
from archon_testing.pieces import Piece
from archon_testing.record import RESUMED_AFTER, Record, ties_between_stages
from archon_testing.verdicts import LIMITS

_FORWARD_LIMITS = {"float64": 1e-9, "float32": 1e-4}
"""Hidden states of float32 differ by more than what is made of them in the end."""


@dataclass(frozen=True)
class FailingWorld:
    """The ranks that look into a case together.

    Attributes:
        case: which one.
        ranks: of the world.
        coordinates: of every rank, axis -> place.
        expert_coordinates: the same on the axes over which experts are sharded.
        sizes: of the axes.
        copies: parameters that are copies of others, on another pipeline stage -> the original's name.
    """

    case: Case
    ranks: Ranks
    coordinates: Coordinates
    expert_coordinates: Coordinates
    sizes: Mapping[str, int]
    copies: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case) -> FailingWorld:
        layout = parse_layout(case.layout, backends=backend_table(registry().all(TrainEngineSpec)))
        dims = layout.parallel_dims(moe=True)
        grid = dims.dense_grid
        ranks = Ranks.of_process_group()
        return cls(
            case,
            ranks,
            [grid.coordinates(rank) for rank in range(ranks.size)],
            [dims.expert_grid.coordinates(rank) for rank in range(ranks.size)],
            dict(zip(grid.axes, grid.sizes, strict=True)),
            ties_between_stages(case),
        )

    @property
    def limit(self) -> float:
        return LIMITS[self.case.dtype]

    def somewhere(self, value: object) -> bool:
        """Whether ``value`` is true on some rank. Collective, as all that follows."""
        return self.ranks.any(bool(value))

    def finding(self, name: str, errors: Sequence[float], limit: float, **fields: Any) -> Finding:
        """With the ranks whose error is above ``limit``, unless all are."""
        wrong = tuple(rank for rank, error in enumerate(errors) if not error <= limit)
        worst = max(errors, key=lambda error: math.inf if math.isnan(error) else error)
        if not wrong or len(wrong) == len(errors):
            return Finding(name, worst, **fields)
        return Finding(name, worst, ranks=wrong, where=shared_place(wrong, self.coordinates), **fields)

    def tensor(self, name: str, own: Mapping[str, Piece], expected: Mapping[str, Piece]) -> Finding:
        """What is wrong with the tensor ``name``, which some rank has."""
        piece = own.get(name)
        error = 0.0 if piece is None else relative_error(piece, expected[name], _largest(expected))
        gathered = self.ranks.gather((error, piece))
        cause = self._unsummed_copies(name, own, expected) or cause_of_tensor(
            [piece for _, piece in gathered], expected[name].values, self._coordinates_of(name)
        )
        return self.finding(name, [error for error, _ in gathered], self.limit, cause=cause)

    def _coordinates_of(self, name: str) -> Coordinates:
        """On the axes that a parameter is sharded over."""
        return self.expert_coordinates if _is_of_experts(name) else self.coordinates

    def wrong(self, own: Mapping[str, Piece], expected: Mapping[str, Piece]) -> list[str]:
        """The tensors that are wrong on some rank that has them, in the order of ``expected``."""
        largest = _largest(expected)
        here = {
            name
            for name, piece in expected.items()
            if name in own and not relative_error(own[name], piece, largest) <= self.limit
        }
        anywhere = set().union(*self.ranks.gather(here))
        return [name for name in expected if name in anywhere]

    def _unsummed_copies(self, name: str, own: Mapping[str, Piece], expected: Mapping[str, Piece]) -> Cause | None:
        """That a tied weight's copies, on two stages, were not summed; ``None`` when they were, or there are none."""
        if name not in self.copies and name not in self.copies.values():
            return None
        original = self.copies.get(name, name)
        tied = [original, *(copy for copy, of in self.copies.items() if of == original)]
        everywhere = self.ranks.gather({copy: own[copy] for copy in tied if copy in own})
        pieces = [[held[copy] for held in everywhere if copy in held] for copy in tied]
        return cause_of_copies(pieces, expected[original].values)

    def initial_weights(self, record: Record, reference: Record) -> Diagnosis:
        """Weights that were drawn otherwise."""
        wrong = self.wrong(record.initial, reference.initial)
        if not wrong:
            return Diagnosis(self.case, remarks=("it passed when it was run again: chance plays a part",))
        found = self.tensor(wrong[0], record.initial, reference.initial)
        remark = (
            f"{len(wrong)} of {len(reference.initial)} weights start with other values than on one process; every draw "
            "must come from the run's seed and the weight's own name (archon_engine.models.initialize)"
        )
        return Diagnosis(self.case, weight=found, remarks=(remark,))

    def stale_weights(self, record: Record) -> Diagnosis | None:
        """Weights that a new engine has otherwise than they were saved; ``None`` when there are none."""
        pairs = {name: (record.loaded[name].values, saved.values) for name, saved in record.saved.items()}
        errors = {name: magnitude(a - b) / (magnitude(b) or 1.0) for name, (a, b) in pairs.items()}
        everywhere = self.ranks.gather(errors)
        names = dict.fromkeys(name for of_rank in everywhere for name in of_rank)
        stale = [name for name in names if any(of_rank.get(name, 0.0) > 0 for of_rank in everywhere)]
        if not stale:
            return None
        found = self.finding(stale[0], [of_rank.get(stale[0], 0.0) for of_rank in everywhere], 0.0)
        remark = f"{len(stale)} of {len(names)} weights are not what was saved, after loading: they are stale"
        return Diagnosis(self.case, weight=found, remarks=(remark,))

    def first_wrong_step(self, record: Record, reference: Record, modules: Sequence[str]) -> Diagnosis:
        """Loss, gradients, norm and weights at the first step where one of them is wrong.

        Args:
            record: of the failing case.
            reference: of one process.
            modules: names, in the order in which forward finishes them.
        """
        steps = self.ranks.gather(first_wrong_step(record, reference, self.case))
        first = min((step for step in steps if step), default=0)
        if not first:
            return Diagnosis(self.case, remarks=("no step differs when it is run again: chance plays a part",))
        own, expected = record.steps[first - 1], reference.steps[first - 1]
        remarks: list[str] = []
        finished = {name: place for place, name in enumerate(modules)}
        wrong = self.wrong(own.gradients, expected.gradients)
        parameter = norm = weight = None
        if wrong:
            name = max(wrong, key=lambda name: finished.get(name.rpartition(".")[0], -1))
            parameter = self.tensor(name, own.gradients, expected.gradients)
            remarks += self._wrong_stages(wrong, own.gradients)
        else:
            norm = self._norm(own.gradient_norm, expected.gradient_norm, own.gradients)
            wrong_weights = self.wrong(own.weights, expected.weights) if norm is None else []
            if wrong_weights:
                weight = self.tensor(wrong_weights[0], own.weights, expected.weights)
        if self.somewhere(_relative(own.loss["learning rate"], expected.loss["learning rate"]) > self.limit):
            found, right = own.loss["learning rate"], expected.loss["learning rate"]
            remarks.append(f"the learning rate of step {first} is {found:.4g}, that of one process {right:.4g}")
        if self.case.check == "resume" and first > RESUMED_AFTER:
            remarks.append("weights are right after loading: optimizer state or counters are not what was saved")
        return Diagnosis(
            self.case,
            n_parameters=len(expected.gradients),
            n_wrong=len(wrong),
            parameter=parameter,
            step=first,
            loss=self._scalar("loss", own.loss["loss"], expected.loss["loss"]),
            norm=norm,
            weight=weight,
            remarks=tuple(remarks),
        )

    def _wrong_stages(self, wrong: Sequence[str], own: Mapping[str, Piece]) -> list[str]:
        """Which pipeline ranks have wrong gradients, when some have none."""
        with_wrong = {
            place["pp"]
            for place, has in zip(self.coordinates, self.ranks.gather(not own.keys().isdisjoint(wrong)), strict=True)
            if has
        }
        if len(with_wrong) == self.sizes["pp"]:
            return []
        ranks = ", ".join(map(str, sorted(with_wrong)))
        return [f"gradients are wrong on the stages of pipeline rank {ranks} only (pp {ranks})"]

    def forward(self, folder: Path, whole: Outputs, n_tokens: Sequence[int], diagnosis: Diagnosis) -> Diagnosis:
        """``diagnosis`` with the first module whose output differs.

        Args:
            folder: of the reference.
            whole: every module's outputs on one process.
            n_tokens: of each micro-batch that they are of.
            diagnosis: of the rest.
        """
        engine = build_engine(replace(self.case, n_mbs=1), folder / CHECKPOINT)
        try:
            own, _ = record_outputs(engine, self.case)
            plan = plan_of(engine, self.case)
        finally:
            engine.close()
        place = self.coordinates[self.ranks.rank]
        n_compared = 0
        for name, expected in whole.items():
            pairs = None
            # A pipeline may run some micro-batches without sequences after those that have some.
            if name in own and len(own[name]) >= len(expected) and not is_partial_sum(name, plan, self.sizes["tp"]):
                cut = [
                    own_and_expected(mine, right, tokens, place, self.sizes, longest=max(n_tokens))
                    for mine_all, right_all, tokens in zip(own[name], expected, n_tokens, strict=False)
                    for mine, right in zip(mine_all, right_all, strict=True)
                ]
                pairs = None if None in cut else [(a.double(), b.double()) for a, b in filter(None, cut)]
            gathered = self.ranks.gather((name in own, pairs))
            everywhere = [pairs or [] for _, pairs in gathered]
            if not any(has for has, _ in gathered) or any(has and pairs is None for has, pairs in gathered):
                continue
            n_compared += 1
            scale = max(magnitude(tensor) for of_micro_batch in expected for tensor in of_micro_batch) or 1.0
            errors = [max((magnitude(a - b) / scale for a, b in pairs), default=0.0) for pairs in everywhere]
            if any(not error <= _FORWARD_LIMITS[self.case.dtype] for error in errors):
                cause = cause_of_factor([pair for pairs in everywhere for pair in pairs], self.coordinates)
                found = self.finding(name, errors, _FORWARD_LIMITS[self.case.dtype], cause=cause)
                return replace(diagnosis, n_modules=len(whole), module=found)
        return replace(diagnosis, n_modules=n_compared)

    def _norm(self, own: float, right: float, gradients: Mapping[str, Piece]) -> Finding | None:
        gathered = self.ranks.gather((own, dict(gradients)))
        errors = [_relative(norm, right) for norm, _ in gathered]
        if all(error <= self.limit for error in errors):
            return None
        held = [of_rank for _, of_rank in gathered]
        cause = cause_of_norm(
            [norm for norm, _ in gathered],
            right,
            held,
            self.coordinates,
            tied=self.copies,
            experts={name for of_rank in held for name in of_rank if _is_of_experts(name)},
            expert_coordinates=self.expert_coordinates,
        )
        return self.finding("gradients agree, their norm does not", errors, self.limit, cause=cause)

    def _scalar(self, name: str, own: float, right: float) -> Finding | None:
        values = self.ranks.gather(own)
        errors = [_relative(value, right) for value in values]
        if all(error <= self.limit for error in errors):
            return None
        return self.finding(name, errors, self.limit, cause=cause_of_number(values[0], right, self.coordinates))


def first_wrong_step(record: Record, reference: Record, case: Case) -> int:
    """The number of the first step with a wrong number on this rank; 0 for none."""
    limit = LIMITS[case.dtype]
    for number, (own, right) in enumerate(zip(record.steps, reference.steps, strict=False), start=1):
        numbers = [_relative(own.loss[name], right.loss[name]) for name in right.loss]
        numbers.append(_relative(own.gradient_norm, right.gradient_norm))
        for mine, theirs in ((own.gradients, right.gradients), (own.weights, right.weights)):
            if theirs is right.weights and case.dtype != "float64":
                continue
            largest = _largest(theirs)
            numbers += [relative_error(piece, theirs[name], largest) for name, piece in mine.items()]
        if any(not error <= limit for error in numbers):
            return number
    return 0


def _is_of_experts(parameter: str) -> bool:
    """By its name, which ``archon_core.contracts.moe`` lays down."""
    return parameter.rpartition(".")[0].endswith(".experts")


def _largest(pieces: Mapping[str, Piece]) -> float:
    return max((magnitude(piece.values) for piece in pieces.values()), default=0.0)


def _relative(found: float, right: float) -> float:
    if not math.isfinite(found):
        return math.inf
    return 0.0 if found == right else abs(found - right) / max(abs(right), 1e-300)
