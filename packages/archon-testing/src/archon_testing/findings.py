"""Diagnoses of a failing case: the first wrong weight, gradient, norm or loss, with its likely cause. Collective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from archon_testing.cases import Case
from archon_testing.causes import (
    cause_of_decay,
    cause_of_norm,
    cause_of_number,
)
from archon_testing.compare import relative_error
from archon_testing.diagnosis import Diagnosis, Finding, shared_place
from archon_testing.engines import OPTIMIZER
from archon_testing.failing_world import FailingWorld, is_expert_parameter, largest_magnitude, relative_difference
from archon_testing.held_shards import HeldShard
from archon_testing.losses import TARGETS
from archon_testing.record import Record, StepRecord
from archon_testing.verdicts import Quantity, limit_of


def diagnose_initial_weights(world: FailingWorld, record: Record, reference: Record) -> Diagnosis:
    """Diagnose initial weights that differ."""
    wrong = world.wrong(record.initial, reference.initial)
    if not wrong:
        return Diagnosis(world.case, remarks=("it passed when run again, so the error is not deterministic",))
    found = world.tensor(wrong[0], record.initial, reference.initial)
    remark = (
        f"{len(wrong)} of {len(reference.initial)} initial weights differ from those on one process; every draw must "
        "depend on the run's seed and the weight's name alone (archon_engine.models.initialize)"
    )
    return Diagnosis(world.case, weight=found, remarks=(remark,))


def diagnose_loading(world: FailingWorld, record: Record, reference: Record) -> Diagnosis | None:
    """Diagnose loading: tensors that differ from the saved ones; ``None`` if all agree."""
    saved = reference.steps[record.first_step - 2]
    wrong = world.wrong(record.loaded, saved.weights)
    if wrong:
        found = world.tensor(wrong[0], record.loaded, saved.weights)
        remark = f"{len(wrong)} of {len(saved.weights)} weights are not what was saved, after loading"
        return Diagnosis(world.case, weight=found, remarks=(remark,))
    for entry in dict.fromkeys(name.rpartition(" ")[2] for name in saved.state):
        own, right = (_entries(shards, entry) for shards in (record.loaded_state, saved.state))
        wrong = world.wrong(own, right) if world.somewhere(own) else []
        if wrong:
            found = world.tensor(wrong[0], own, right)
            remark = (
                f"weights are right after loading, and {len(wrong)} of {len(right)} tensors {entry} of the "
                "optimizer are not what was saved"
            )
            return Diagnosis(world.case, state=found, remarks=(remark,))
    return None


def diagnose_steps(world: FailingWorld, record: Record, reference: Record, modules: Sequence[str]) -> Diagnosis:
    """Diagnose loss, gradients, norm and weights at the first step where one of them is wrong.

    Args:
        world: the ranks.
        record: of the failing case.
        reference: of one process.
        modules: names of modules, in the order in which forward finishes them.
    """
    steps = world.ranks.gather(first_wrong_step(record, reference, world.case))
    first = min((step for step in steps if step), default=0)
    problems = dict.fromkeys(problem for of_rank in world.ranks.gather(record.problems) for problem in of_rank)
    if not first:
        by_itself = bool(problems) or world.somewhere(any(not e <= world.limit for e in record.exported.values()))
        chance = () if by_itself else ("no step differs when run again, so the error is not deterministic",)
        return Diagnosis(world.case, remarks=(*problems, *chance))
    [(own, expected)] = [(mine, right) for number, mine, right in record.paired_steps(reference) if number == first]
    remarks = _target_remarks(world, own)
    finished = {name: place for place, name in enumerate(modules)}
    wrong = world.wrong(own.gradients, expected.gradients)
    parameter = norm = weight = None
    if wrong:
        name = max(wrong, key=lambda name: finished.get(name.rpartition(".")[0], -1))
        parameter = world.tensor(name, own.gradients, expected.gradients)
        remarks += _stage_remarks(world, wrong, own.gradients)
    else:
        norm = _norm_finding(world, own.gradient_norm, expected.gradient_norm, own.gradients)
        wrong_weights = world.wrong(own.weights, expected.weights) if norm is None else []
        if wrong_weights:
            before = reference.start if first == 1 else reference.steps[first - 2].weights
            weight, about = _weight_finding(world, wrong_weights, own, expected, before)
            remarks += about
    if world.somewhere(relative_difference(own.loss["learning rate"], expected.loss["learning rate"]) > world.limit):
        found, right = own.loss["learning rate"], expected.loss["learning rate"]
        remarks.append(f"the learning rate of step {first} is {found:.4g}, that of one process {right:.4g}")
    if world.case.check == "resume":
        remarks.append("weights and optimizer state are right after loading: counters are not what was saved")
    return Diagnosis(
        world.case,
        n_parameters=len(expected.gradients),
        n_wrong=len(wrong),
        parameter=parameter,
        step=first,
        loss=_scalar_finding(world, "loss", own.loss["loss"], expected.loss["loss"]),
        norm=norm,
        weight=weight,
        remarks=tuple(remarks),
    )


def _target_remarks(world: FailingWorld, own: StepRecord) -> list[str]:
    """Remarks if the loss misses targets, or is divided by a wrong number of them."""
    counted = own.counted
    seen = world.ranks.gather((counted.n_calls, counted.targets, counted.weighed, own.targets))
    fewer = [rank for rank, (calls, targets, _, right) in enumerate(seen) if calls and targets != right]
    if fewer:
        _, targets, weighed, right = seen[fewer[0]]
        shared = ", ".join(f"{axis} {place}" for axis, place in shared_place(fewer, world.coordinates).items())
        ranks = "" if len(fewer) == len(seen) else f" on ranks {', '.join(map(str, fewer))} ({shared})"
        too = "" if weighed == right else f", and {weighed:g} are weighed"
        few = "fewer" if targets < right else "more"
        return [f"{few} targets: the loss is applied to {targets:g} of {right:g}{ranks}{too}; forward is not to blame"]
    share = own.loss.get(TARGETS, 1.0)
    if relative_difference(share, 1.0) > world.limit:
        return [f"the loss is applied to all targets, and divided by {1 / share:.6g} times their number"]
    return []


def _weight_finding(
    world: FailingWorld, wrong: Sequence[str], own: StepRecord, expected: StepRecord, before: Mapping[str, HeldShard]
) -> tuple[Finding, list[str]]:
    """The first wrong weight, and a remark about all of them if weight decay is wrong."""
    rate, causes = expected.loss["learning rate"], {}
    for name in wrong:
        shards = [shard for shard in world.ranks.gather(own.weights.get(name)) if shard is not None]
        start, right = before[name].values, expected.weights[name].values
        found = right.clone()
        for shard in shards:
            found[shard.box.slices] = shard.values
        decay = rate * OPTIMIZER.weight_decay * start
        causes[name] = cause_of_decay(found, right, decay, decayed=start.ndim >= 2)
    finding = world.tensor(wrong[0], own.weights, expected.weights)
    cause = causes[wrong[0]]
    if cause is None:
        return finding, []
    alike = [name for name in wrong if causes[name] is not None and causes[name].kind == cause.kind]
    kind = "vectors" if cause.kind == "decay unwanted" else "matrices"
    total = sum((len(shard.shape) >= 2) == (kind == "matrices") for shard in expected.weights.values())
    return replace(finding, cause=cause), [f"weight decay is to blame: {len(alike)} of {total} {kind} differ like that"]


def _stage_remarks(world: FailingWorld, wrong: Sequence[str], own: Mapping[str, HeldShard]) -> list[str]:
    """A remark about the pipeline ranks with wrong gradients, if only some have them."""
    with_wrong = {
        place["pp"]
        for place, has in zip(world.coordinates, world.ranks.gather(not own.keys().isdisjoint(wrong)), strict=True)
        if has
    }
    if len(with_wrong) == world.sizes["pp"]:
        return []
    ranks = ", ".join(map(str, sorted(with_wrong)))
    return [f"gradients are wrong on the stages of pipeline rank {ranks} only (pp {ranks})"]


def _norm_finding(world: FailingWorld, own: float, right: float, gradients: Mapping[str, HeldShard]) -> Finding | None:
    gathered = world.ranks.gather((own, dict(gradients)))
    errors = [relative_difference(norm, right) for norm, _ in gathered]
    limit = limit_of(world.case.compute_dtype, "gradient norm")
    if all(error <= limit for error in errors):
        return None
    held = [of_rank for _, of_rank in gathered]
    cause = cause_of_norm(
        [norm for norm, _ in gathered],
        right,
        held,
        world.coordinates,
        tied=world.copies,
        experts={name for of_rank in held for name in of_rank if is_expert_parameter(name)},
        expert_coordinates=world.expert_coordinates,
    )
    return world.finding("gradients agree, their norm does not", errors, limit, cause=cause)


def _scalar_finding(world: FailingWorld, name: str, own: float, right: float) -> Finding | None:
    values = world.ranks.gather(own)
    errors, limit = [relative_difference(value, right) for value in values], limit_of(world.case.compute_dtype, "loss")
    if all(error <= limit for error in errors):
        return None
    return world.finding(name, errors, limit, cause=cause_of_number(values[0], right, world.coordinates))


def _entries(shards: Mapping[str, HeldShard], entry: str) -> dict[str, HeldShard]:
    """The optimizer state of one entry."""
    return {name: shard for name, shard in shards.items() if name.endswith(f" {entry}")}


def first_wrong_step(record: Record, reference: Record, case: Case) -> int:
    """The number of the first step with a wrong value on this rank; 0 for none."""
    dtype = case.compute_dtype
    for number, own, right in record.paired_steps(reference):
        errors: list[tuple[Quantity, float]] = [
            ("loss", relative_difference(own.loss[name], right.loss[name])) for name in right.loss
        ]
        errors.append(("gradient norm", relative_difference(own.gradient_norm, right.gradient_norm)))
        kinds: list[tuple[Quantity, Mapping[str, HeldShard], Mapping[str, HeldShard]]] = [
            ("gradients", own.gradients, right.gradients)
        ]
        if dtype == "float64":
            kinds.append(("weights", own.weights, right.weights))
        for quantity, mine, theirs in kinds:
            largest = largest_magnitude(theirs)
            errors += [(quantity, relative_error(shard, theirs[name], largest)) for name, shard in mine.items()]
        if any(not error <= limit_of(dtype, quantity) for quantity, error in errors):
            return number
    return 0
