"""What the ranks of a failing case find together: the first wrong module, parameter or number, and its likely cause.

Every rank sees its own pieces. What is wrong anywhere is exchanged, and all ranks draw the same conclusions from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import TrainEngineSpec, registry
from archon_core.ranks.ranks import Ranks
from archon_testing.cases import Case
from archon_testing.causes import (
    Coordinates,
    cause_of_copies,
    cause_of_decay,
    cause_of_norm,
    cause_of_number,
    cause_of_tensor,
)
from archon_testing.compare import STACKED, magnitude, relative_error
from archon_testing.diagnosis import Cause, Diagnosis, Finding, shared_place
from archon_testing.engines import OPTIMIZER
from archon_testing.held_shards import HeldShard
from archon_testing.losses import TARGETS
from archon_testing.record import Record, StepRecord, ties_between_stages
from archon_testing.verdicts import LIMITS, Quantity, limit_of


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
        return LIMITS[self.case.compute_dtype]

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

    def tensor(self, name: str, own: Mapping[str, HeldShard], expected: Mapping[str, HeldShard]) -> Finding:
        """What is wrong with the tensor ``name``, which some rank has."""
        piece = own.get(name)
        error = 0.0 if piece is None else relative_error(piece, expected[name], _largest(expected))
        gathered = self.ranks.gather((error, piece))
        pieces, right = [piece for _, piece in gathered], expected[name].values
        experts = self._wrong_experts(piece, expected[name], _largest(expected))
        if experts:
            # The others are right, and would hide what these are a multiple of.
            pieces = [None if piece is None else piece.at(experts[0]) for piece in pieces]
            right = right[experts[0]][None]
        cause = self._unsummed_copies(name, own, expected) or cause_of_tensor(pieces, right, self._coordinates_of(name))
        errors = [error for error, _ in gathered]
        return self.finding(
            name, errors, self.limit, cause=cause, experts=experts, n_experts=len(expected[name].values)
        )

    def _wrong_experts(self, own: HeldShard | None, expected: HeldShard, largest: float) -> tuple[int, ...]:
        """Which matrices of a stack are wrong somewhere; nothing where all are, or for what is no stack."""
        n_experts = len(expected.values) if expected.values.ndim == STACKED else 0
        here = set()
        for number in range(n_experts):
            part = None if own is None else own.at(number)
            if part is not None and not relative_error(part, _whole_row(expected, number), largest) <= self.limit:
                here.add(number)
        anywhere = sorted(set().union(*self.ranks.gather(here)))
        return tuple(anywhere) if len(anywhere) < n_experts else ()

    def _coordinates_of(self, name: str) -> Coordinates:
        """On the axes that a parameter is sharded over."""
        return self.expert_coordinates if _is_of_experts(name) else self.coordinates

    def wrong(self, own: Mapping[str, HeldShard], expected: Mapping[str, HeldShard]) -> list[str]:
        """The tensors that are wrong on some rank that has them, in the order of ``expected``."""
        largest = _largest(expected)
        here = {
            name
            for name, piece in expected.items()
            if name in own and not relative_error(own[name], piece, largest) <= self.limit
        }
        anywhere = set().union(*self.ranks.gather(here))
        return [name for name in expected if name in anywhere]

    def _unsummed_copies(
        self, name: str, own: Mapping[str, HeldShard], expected: Mapping[str, HeldShard]
    ) -> Cause | None:
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

    def not_as_saved(self, record: Record, reference: Record) -> Diagnosis | None:
        """What a new engine has otherwise than it was saved; ``None`` when it is all right."""
        saved = reference.steps[record.first_step - 2]
        wrong = self.wrong(record.loaded, saved.weights)
        if wrong:
            found = self.tensor(wrong[0], record.loaded, saved.weights)
            remark = f"{len(wrong)} of {len(saved.weights)} weights are not what was saved, after loading"
            return Diagnosis(self.case, weight=found, remarks=(remark,))
        for entry in dict.fromkeys(name.rpartition(" ")[2] for name in saved.state):
            own, right = (_entries(pieces, entry) for pieces in (record.loaded_state, saved.state))
            wrong = self.wrong(own, right) if self.somewhere(own) else []
            if wrong:
                found = self.tensor(wrong[0], own, right)
                remark = (
                    f"weights are right after loading, and {len(wrong)} of {len(right)} tensors {entry} of the "
                    "optimizer are not what was saved"
                )
                return Diagnosis(self.case, state=found, remarks=(remark,))
        return None

    def first_wrong_step(self, record: Record, reference: Record, modules: Sequence[str]) -> Diagnosis:
        """Loss, gradients, norm and weights at the first step where one of them is wrong.

        Args:
            record: of the failing case.
            reference: of one process.
            modules: names, in the order in which forward finishes them.
        """
        steps = self.ranks.gather(first_wrong_step(record, reference, self.case))
        first = min((step for step in steps if step), default=0)
        problems = dict.fromkeys(problem for of_rank in self.ranks.gather(record.problems) for problem in of_rank)
        if not first:
            by_itself = bool(problems) or self.somewhere(any(not e <= self.limit for e in record.exported.values()))
            chance = () if by_itself else ("no step differs when it is run again: chance plays a part",)
            return Diagnosis(self.case, remarks=(*problems, *chance))
        [(own, expected)] = [(mine, right) for number, mine, right in record.beside(reference) if number == first]
        remarks = self._lost_targets(own)
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
                before = reference.start if first == 1 else reference.steps[first - 2].weights
                weight, about = self._weight(wrong_weights, own, expected, before)
                remarks += about
        if self.somewhere(_relative(own.loss["learning rate"], expected.loss["learning rate"]) > self.limit):
            found, right = own.loss["learning rate"], expected.loss["learning rate"]
            remarks.append(f"the learning rate of step {first} is {found:.4g}, that of one process {right:.4g}")
        if self.case.check == "resume":
            remarks.append("weights and optimizer state are right after loading: counters are not what was saved")
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

    def _lost_targets(self, own: StepRecord) -> list[str]:
        """That the loss does not see all targets, or is divided by another number of them."""
        counted = own.counted
        seen = self.ranks.gather((counted.n_calls, counted.targets, counted.weighed, own.targets))
        fewer = [rank for rank, (calls, targets, _, right) in enumerate(seen) if calls and targets != right]
        if fewer:
            _, targets, weighed, right = seen[fewer[0]]
            shared = ", ".join(f"{axis} {place}" for axis, place in shared_place(fewer, self.coordinates).items())
            ranks = "" if len(fewer) == len(seen) else f" on ranks {', '.join(map(str, fewer))} ({shared})"
            too = "" if weighed == right else f", and {weighed:g} are weighed"
            few = "fewer" if targets < right else "more"
            return [
                f"{few} targets: the loss is applied to {targets:g} of {right:g}{ranks}{too}; forward is not to blame"
            ]
        share = own.loss.get(TARGETS, 1.0)
        if _relative(share, 1.0) > self.limit:
            return [f"the loss is applied to all targets, and divided by {1 / share:.6g} times their number"]
        return []

    def _weight(
        self, wrong: Sequence[str], own: StepRecord, expected: StepRecord, before: Mapping[str, HeldShard]
    ) -> tuple[Finding, list[str]]:
        """The first wrong weight, and what is to be said of all of them where weight decay is wrong."""
        rate, causes = expected.loss["learning rate"], {}
        for name in wrong:
            pieces = [piece for piece in self.ranks.gather(own.weights.get(name)) if piece is not None]
            start, right = before[name].values, expected.weights[name].values
            found = right.clone()
            for piece in pieces:
                found[piece.box.slices] = piece.values
            decay = rate * OPTIMIZER.weight_decay * start
            causes[name] = cause_of_decay(found, right, decay, decayed=start.ndim >= 2)
        finding = self.tensor(wrong[0], own.weights, expected.weights)
        cause = causes[wrong[0]]
        if cause is None:
            return finding, []
        alike = [name for name in wrong if causes[name] is not None and causes[name].kind == cause.kind]
        kind = "vectors" if cause.kind == "decay unwanted" else "matrices"
        total = sum((len(piece.shape) >= 2) == (kind == "matrices") for piece in expected.weights.values())
        return replace(finding, cause=cause), [
            f"weight decay is to blame: {len(alike)} of {total} {kind} differ like that"
        ]

    def _wrong_stages(self, wrong: Sequence[str], own: Mapping[str, HeldShard]) -> list[str]:
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

    def _norm(self, own: float, right: float, gradients: Mapping[str, HeldShard]) -> Finding | None:
        gathered = self.ranks.gather((own, dict(gradients)))
        errors = [_relative(norm, right) for norm, _ in gathered]
        limit = limit_of(self.case.compute_dtype, "gradient norm")
        if all(error <= limit for error in errors):
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
        return self.finding("gradients agree, their norm does not", errors, limit, cause=cause)

    def _scalar(self, name: str, own: float, right: float) -> Finding | None:
        values = self.ranks.gather(own)
        errors, limit = [_relative(value, right) for value in values], limit_of(self.case.compute_dtype, "loss")
        if all(error <= limit for error in errors):
            return None
        return self.finding(name, errors, limit, cause=cause_of_number(values[0], right, self.coordinates))


def _entries(pieces: Mapping[str, HeldShard], entry: str) -> dict[str, HeldShard]:
    """Of optimizer state, what is called ``entry``."""
    return {name: piece for name, piece in pieces.items() if name.endswith(f" {entry}")}


def _whole_row(piece: HeldShard, row: int) -> HeldShard:
    part = piece.at(row)
    assert part is not None, "a whole tensor has all rows"
    return part


def first_wrong_step(record: Record, reference: Record, case: Case) -> int:
    """The number of the first step with a wrong number on this rank; 0 for none."""
    dtype = case.compute_dtype
    for number, own, right in record.beside(reference):
        errors: list[tuple[Quantity, float]] = [
            ("loss", _relative(own.loss[name], right.loss[name])) for name in right.loss
        ]
        errors.append(("gradient norm", _relative(own.gradient_norm, right.gradient_norm)))
        kinds: list[tuple[Quantity, Mapping[str, HeldShard], Mapping[str, HeldShard]]] = [
            ("gradients", own.gradients, right.gradients)
        ]
        if dtype == "float64":
            kinds.append(("weights", own.weights, right.weights))
        for quantity, mine, theirs in kinds:
            largest = _largest(theirs)
            errors += [(quantity, relative_error(piece, theirs[name], largest)) for name, piece in mine.items()]
        if any(not error <= limit_of(dtype, quantity) for quantity, error in errors):
            return number
    return 0


def _is_of_experts(parameter: str) -> bool:
    """By its name, which ``archon_core.contracts.moe`` lays down."""
    return parameter.rpartition(".")[0].endswith(".experts")


def _largest(pieces: Mapping[str, HeldShard]) -> float:
    return max((magnitude(piece.values) for piece in pieces.values()), default=0.0)


def _relative(found: float, right: float) -> float:
    if not math.isfinite(found):
        return math.inf
    return 0.0 if found == right else abs(found - right) / max(abs(right), 1e-300)
