"""Compares the forward pass of a failing case with one process, module by module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from archon_testing.causes import cause_of_factor
from archon_testing.compare import magnitude
from archon_testing.diagnosis import Diagnosis
from archon_testing.engines import CHECKPOINT, build_engine
from archon_testing.failing_world import FailingWorld
from archon_testing.module_outputs import Outputs, Passed, is_partial_sum, place_of, plan_of, record_outputs

_LIMITS = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.3}
"""Hidden states in narrow dtypes differ by more than the final outputs."""

_BLAMED_BY_CHANCE = 0.5
"""Share of a layer's experts beyond which naming them is no information."""


def diagnose_forward(
    world: FailingWorld, folder: Path, whole: Outputs, passed: Passed, diagnosis: Diagnosis
) -> Diagnosis:
    """``diagnosis`` with the first module whose output differs.

    Args:
        world: the ranks.
        folder: of the reference.
        whole: the outputs of every module on one process.
        passed: the corresponding tokens.
        diagnosis: of everything else.
    """
    engine = build_engine(replace(world.case, n_mbs=1), folder / CHECKPOINT)
    try:
        own, mine = record_outputs(engine, world.case, _batch_of(diagnosis))
        plan = plan_of(engine, world.case)
    finally:
        engine.close()
    limit = _LIMITS[world.case.compute_dtype]
    n_compared = 0
    for name, expected in whole.items():
        skipped = is_partial_sum(name, plan, world.sizes["tp"], _expert_ranks(world))
        outputs = _beside(world, own.get(name), expected, passed.n_tokens, mine.places) if not skipped else None
        gathered = world.ranks.gather((name in own, outputs))
        everywhere = [outputs or [] for _, outputs in gathered]
        if not any(has for has, _ in gathered) or any(has and outputs is None for has, outputs in gathered):
            continue
        n_compared += 1
        scale = max(magnitude(tensor) for of_micro_batch in expected for tensor in of_micro_batch) or 1.0
        errors = [max((magnitude(o.own - o.right) / scale for o in parts), default=0.0) for parts in everywhere]
        if any(not error <= limit for error in errors):
            everything = [part for parts in everywhere for part in parts]
            cause = cause_of_factor([(part.own, part.right) for part in everything], world.coordinates)
            tokens = set().union(*(part.wrong_tokens(limit * scale) for part in everything))
            first = min((int(passed.positions[number][token]) for number, token in tokens), default=0)
            experts = _experts_of(world, name, own, whole, passed, mine.places, limit)
            found = world.finding(name, errors, limit, cause=cause, first_position=first, **experts)
            lost = _lost_outputs(everything, limit * scale, sum(passed.n_tokens))
            remarks = (*diagnosis.remarks, *lost)
            return replace(diagnosis, n_modules=len(whole), module=found, remarks=remarks)
    remarks = (*diagnosis.remarks, *_outputs(world, mine.outputs, passed.outputs, limit))
    return replace(diagnosis, n_modules=n_compared, remarks=remarks)


def _expert_ranks(world: FailingWorld) -> int:
    """Ranks over which the experts of a layer, or the matrices of each, are cut."""
    return len({(place["ep"], place["etp"]) for place in world.expert_coordinates})


def _outputs(world: FailingWorld, own: Mapping[str, Tensor], whole: Mapping[str, Tensor], limit: float) -> list[str]:
    """Remarks about wrong inputs of the loss although all modules agree."""
    found = []
    for name, right in whole.items():
        values = own.get(name, right)
        wrong = ~((values - right).abs() <= limit * magnitude(right))
        seen = world.ranks.gather((int(wrong.sum()), bool((values[wrong] == 0).all())))
        most = max(number for number, _ in seen)
        if most:
            zero = all(zero for number, zero in seen if number)
            lost = f" and are zero, so that the loss has fewer targets: {name}" if zero else f": {name}"
            found.append(f"outputs of {most} of {len(right)} tokens differ although all modules agree{lost}")
    return found


def _beside(
    world: FailingWorld,
    own: Sequence[tuple[Tensor, ...]] | None,
    expected: Sequence[tuple[Tensor, ...]],
    n_tokens: Sequence[int],
    places: Sequence[Sequence[int]],
) -> list[_Output] | None:
    """A module's outputs on this rank, each with the same part on one process; ``None`` if no sharding fits."""
    # A pipeline may run micro-batches without sequences, after all others.
    if own is None or len(own) < len(expected):
        return None
    place, found = world.coordinates[world.ranks.rank], []
    for number, (mine_all, right_all) in enumerate(zip(own, expected, strict=False)):
        for mine, right in zip(mine_all, right_all, strict=True):
            cut = place_of(mine, right, n_tokens[number], place, world.sizes, places=places[number])
            if cut is None:
                return None
            tokens = tuple(cut[0]) if cut else None
            held = mine if tokens is None else mine[: len(tokens)]
            found.append(_Output(number, tokens, held.double(), right[cut].double()))
    return found


def _experts_of(
    world: FailingWorld,
    module: str,
    own: Outputs,
    whole: Outputs,
    passed: Passed,
    places: Sequence[Sequence[int]],
    limit: float,
) -> dict[str, Any]:
    """The experts whose tokens are exactly the wrong tokens of an expert block; empty for other modules."""
    block = next((name for name in passed.experts if f"{module}.".startswith(f"{name}.")), None)
    if block is None:
        return {}
    outputs = _beside(world, own.get(block), whole[block], passed.n_tokens, places) or []
    scale = max(magnitude(tensor) for of_micro_batch in whole[block] for tensor in of_micro_batch) or 1.0
    here = set().union(*(output.wrong_tokens(limit * scale) for output in outputs))
    wrong = set().union(*world.ranks.gather(here))
    sent: dict[int, set[tuple[int, int]]] = {}
    for number, chosen in enumerate(passed.experts[block]):
        for token, numbers in enumerate(chosen.tolist()):
            for expert in numbers:
                sent.setdefault(expert, set()).add((number, token))
    blamed = tuple(sorted(expert for expert, tokens in sent.items() if expert >= 0 and tokens <= wrong))
    covered = set().union(*(sent[expert] for expert in blamed))
    n_experts = max(sent, default=-1) + 1
    if not blamed or covered != wrong or len(blamed) > _BLAMED_BY_CHANCE * n_experts:
        return {}
    return {"experts": blamed, "n_experts": n_experts}


@dataclass(frozen=True)
class _Output:
    """A module's output for a micro-batch on one rank.

    Attributes:
        number: of the micro-batch.
        tokens: the tokens of the rows; ``None`` where rows are not tokens.
        own: found.
        right: the same part of one process's.
    """

    number: int
    tokens: tuple[int, ...] | None
    own: Tensor
    right: Tensor

    def wrong_tokens(self, limit: float) -> set[tuple[int, int]]:
        """(Micro-batch, index) of the tokens that differ by more than ``limit``."""
        if self.tokens is None or not self.own.numel():
            return set()
        errors = (
            (self.own - self.right).abs().flatten(1).amax(1) if self.own.ndim > 1 else (self.own - self.right).abs()
        )
        return {(self.number, self.tokens[row]) for row in (~(errors <= limit)).nonzero().flatten().tolist()}


def _lost_outputs(outputs: Sequence[_Output], limit: float, n_tokens: int) -> list[str]:
    """A remark if the wrong per-token outputs are zero, that is, missing."""
    tokens = set().union(*(output.wrong_tokens(limit) for output in outputs if output.own.ndim == 1))
    off = [o for o in outputs if o.own.ndim == 1 and o.own.numel() and magnitude(o.own - o.right) > limit]
    if not tokens or any(magnitude(o.own[~((o.own - o.right).abs() <= limit)]) > 0 for o in off):
        return []
    return [f"fewer targets: the outputs of {len(tokens)} of {n_tokens} tokens are zero"]


def _batch_of(diagnosis: Diagnosis) -> int:
    """The step whose batch is used to compare modules: the first wrong step."""
    return max(diagnosis.step - 1, 0)
