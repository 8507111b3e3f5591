"""``Diagnosis``: where the error of a failing case first appears. Data and messages; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from archon_testing.cases import Case

CauseKind = Literal[
    "factor",
    "missing reduction",
    "averaged",
    "forgotten axis",
    "copies counted",
    "copies not summed",
    "experts left out",
    "decay missing",
    "decay unwanted",
    "decay wrong",
    "transposed",
    "rows exchanged",
    "stale",
    "unknown",
]


@dataclass(frozen=True)
class Cause:
    """The relation of a wrong value to the right one.

    Attributes:
        kind: ``factor``: a clean multiple. ``missing reduction``: the ranks along ``axes`` hold parts of the right
            value. ``averaged``: their values average to it. ``forgotten axis``: a norm without the parts that other
            ranks along ``axes`` hold. ``copies counted``: a norm that counts copies along ``axes`` more than once; with
            ``pp``, those of tied weights. ``copies not summed``: the two copies of a tied weight hold parts of the
            right value. ``experts left out``: a norm without experts or, with ``axes``, without those of other ranks
            along them. ``decay missing``, ``decay unwanted``, ``decay wrong``: a weight that differs by what weight
            decay takes away in a step, or a multiple of it. ``transposed``, ``rows exchanged``: the right elements in
            other places. ``stale``: the value of before training.
        axes: names of mesh axes: ``pp``, ``dp_replicate``, ``dp_shard``, ``cp``, ``tp``; of experts ``edp``, ``ep`` and
            ``etp`` instead of the last three; of ``factor``, those of that
            size, if no others have it.
        factor: least-squares ratio of the wrong value to the right one; ``None`` if it is meaningless.
        candidates: of ``factor``, all sets of axes of that size, when there are several.
    """

    kind: CauseKind = "unknown"
    axes: tuple[str, ...] = ()
    factor: float | None = None
    candidates: tuple[tuple[str, ...], ...] = ()

    def __str__(self) -> str:
        axes = " x ".join(self.axes)
        match self.kind:
            case "missing reduction":
                return f"the ranks along {axes} hold parts that sum to the right value: a missing reduction over {axes}"
            case "averaged":
                return f"the ranks along {axes} differ, and their mean is right: they were never averaged over {axes}"
            case "forgotten axis":
                return f"it is that of one {axes} rank's parts: the norm forgets {axes}"
            case "copies not summed":
                return (
                    "the two copies of this tied weight hold parts that sum to the right value: they were never summed"
                )
            case "experts left out" if self.axes:
                return f"it counts the experts of one {axes} rank only: the norm forgets {axes} where experts are"
            case "experts left out":
                return "it is that of all other parameters: the norm leaves experts out"
            case "decay missing":
                return "it differs by lr * weight_decay * weight: weight decay is left out"
            case "decay unwanted":
                return "it differs by lr * weight_decay * weight: weight decay is applied, which vectors do not have"
            case "decay wrong":
                return f"weight decay is applied {self.factor or 0.0:.4g} times"
            case "transposed":
                return "it is the transpose of the right value"
            case "rows exchanged":
                return "its rows are right and in another order"
            case "stale":
                return "it is the value of before training"
            case "copies counted" if "pp" in self.axes:
                return "it counts tied weights once for each stage that has a copy"
            case "copies counted":
                return f"it counts the copies along {axes} as parts"
            case "factor":
                either = " or ".join(" x ".join(candidate) for candidate in self.candidates)
                return _of_factor(self.factor or 0.0, axes or either)
        if self.factor == 0.0:
            return "it is zero throughout"
        # A ratio that rounds to 1 is no information.
        about = "1" if self.factor is None else f"{self.factor:.4g}"
        return "" if about == "1" else f"about {about} times the right value"


@dataclass(frozen=True)
class Finding:
    """A wrong value.

    Attributes:
        name: of a module, parameter or quantity.
        error: relative error, the worst of all ranks.
        cause: relation to the right value.
        ranks: the ranks with a wrong value; empty for all ranks.
        where: the coordinates that these ranks share, such as ``{"cp": 1}``.
        experts: the experts with wrong values; empty for all, or without experts.
        n_experts: number of experts.
        first_position: first wrong position in a sequence; 0 if it is meaningless.
    """

    name: str
    error: float
    cause: Cause = Cause()
    ranks: tuple[int, ...] = ()
    where: Mapping[str, int] | None = None
    experts: tuple[int, ...] = ()
    n_experts: int = 0
    first_position: int = 0

    def __str__(self) -> str:
        parts = [f"off by {self.error:.1e}"]
        if self.ranks:
            shared = ", ".join(f"{axis} {place}" for axis, place in (self.where or {}).items())
            one = len(self.ranks) == 1
            parts.append(
                f"on rank{'s' * (not one)} {', '.join(map(str, self.ranks))}{f' ({shared})' if shared else ''}"
            )
        if self.experts:
            several = "s" * (len(self.experts) > 1)
            parts.append(f"only expert{several} {', '.join(map(str, self.experts))} of {self.n_experts}")
        if self.first_position:
            parts.append(f"only tokens from position {self.first_position} of their sequence on")
        if cause := str(self.cause):
            parts.append(cause)
        return f"{self.name}: {'; '.join(parts)}"


@dataclass(frozen=True)
class Diagnosis:
    """Where the error of a failing case first appears.

    Attributes:
        case: the failing case.
        n_modules: number of modules whose outputs were compared; 0 if none was.
        module: the first module in forward order whose output differs; ``None`` if all agree.
        n_parameters: number of parameters; 0 if gradients were not compared.
        n_wrong: number of parameters whose gradient differs.
        parameter: the first parameter in backward order whose gradient differs.
        step: the first optimizer step with a wrong gradient, loss or norm.
        loss: the loss, if wrong.
        norm: the gradient norm, if wrong although the gradients are right.
        weight: a wrong weight: after loading, initially, or after a step with right gradients and norm.
        state: optimizer state that is wrong after loading.
        export: the first exported tensor that is wrong although the weights are right.
        alone: whether the same run on one process differs, too, so that the layout is not the cause.
        recomputed: whether the case agrees without activation checkpointing.
        remarks: further findings, as sentences.
    """

    case: Case
    n_modules: int = 0
    module: Finding | None = None
    n_parameters: int = 0
    n_wrong: int = 0
    parameter: Finding | None = None
    step: int = 1
    loss: Finding | None = None
    norm: Finding | None = None
    weight: Finding | None = None
    state: Finding | None = None
    export: Finding | None = None
    alone: bool = False
    recomputed: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The lines to print."""
        lines = []
        if self.module is not None:
            lines.append(f"first module in forward order whose output differs: {self.module}")
        elif self.n_modules:
            lines.append(f"forward agrees in all {self.n_modules} modules that can be compared{self._place}")
        if self.parameter is not None:
            lines.append(
                f"first parameter that backward reaches whose gradient differs (step {self.step}; {self.n_wrong} of "
                f"{self.n_parameters} differ): {self.parameter}"
            )
        elif self.n_parameters:
            lines.append(f"all {self.n_parameters} gradients agree (step {self.step})")
        for what, finding in (("loss", self.loss), ("gradient norm", self.norm), ("weight", self.weight)):
            if finding is not None:
                lines.append(f"{what} (step {self.step}): {finding}" if self.n_parameters else f"{what}: {finding}")
        for what, finding in (("optimizer state", self.state), ("exported tensor", self.export)):
            if finding is not None:
                lines.append(f"{what}: {finding}")
        return [*lines, *self.remarks]

    @property
    def _place(self) -> str:
        """The place of the error if the forward pass agrees."""
        if self.alone:
            return "; one process differs likewise, so the layout is not to blame"
        if self.recomputed:
            return ": the mistake is in what backward recomputes"
        if self.parameter is not None:
            return ": the mistake is in backward or in a reduction"
        if self.norm is not None:
            return ": the mistake is in the gradient norm"
        if self.weight is not None:
            return ": the mistake is in the step"
        if self.export is not None:
            return ": the mistake is in the export"
        return ""


def shared_place(ranks: Sequence[int], coordinates: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The coordinates that ``ranks`` have in common, on axes where the world's ranks differ.

    Args:
        ranks: some of the world's ranks.
        coordinates: of every rank, axis -> place.
    """
    varying = [axis for axis in coordinates[0] if len({own[axis] for own in coordinates}) > 1]
    return {
        axis: coordinates[ranks[0]][axis] for axis in varying if len({coordinates[rank][axis] for rank in ranks}) == 1
    }


def _of_factor(factor: float, axes: str) -> str:
    over = f" over {axes}" if axes else ""
    size = max(factor, 1 / factor)
    if abs(size - round(size)) > 1e-4 * size:
        return f"{factor:.6g} times the right value throughout"
    if factor > 1:
        return f"{factor:.6g} times the right value, cleanly: a doubled reduction, or copies that are summed{over}"
    return f"{factor:.6g} times the right value, cleanly: a missing reduction, or a mean instead of a sum{over}"
