"""Records the outputs of every module in one forward pass, and compares a rank's shard with the output on one process.

Every data rank runs the same whole batch as one micro-batch, so that ranks differ only by context and tensor sharding.
A pipeline needs several micro-batches, and then one process runs as many. Legend: T tokens, c context ranks, t tensor
ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from torch import Tensor, nn

from archon_core.models.name_pattern import matches
from archon_core.models.parallel_plan import ParallelPlan, ancestors
from archon_core.plugins import registry
from archon_engine.models.parameter_names import global_name
from archon_engine.models.staged import stages_of
from archon_testing.cases import Case
from archon_testing.losses import oracle_loss
from archon_testing.measuring import oracle_batches

Outputs = Mapping[str, Sequence[tuple[Tensor, ...]]]
"""Module -> its outputs per micro-batch, ordered by the first completion of modules."""


@dataclass
class Passed:
    """Context of the recorded outputs; complete only on one process, without stages, padding or sharding.

    Attributes:
        positions: per micro-batch, the position of every token in its sequence.
        places: per micro-batch, the place in the pack of every token that this context rank holds, padding included.
        experts: expert block -> per micro-batch, the routed experts [T, k].
        outputs: name -> per-token outputs of the whole batch, in its order, as the loss gets them.
    """

    positions: list[Tensor] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)
    experts: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_tokens(self) -> list[int]:
        """Tokens per micro-batch."""
        return [len(positions) for positions in self.positions]


def record_outputs(engine: Any, case: Case, step: int = 0) -> tuple[Outputs, Passed]:
    """Run the oracle's whole batch of a step on every data rank; record the outputs of all modules. Collective."""
    found: dict[str, list[tuple[Tensor, ...]]] = {}
    passed = Passed()
    batch = oracle_batches(case, engine.hf_config)[step]
    stages = stages_of(engine.module)
    # Inputs that all stages share, such as positions, are recorded on the first stage of this rank.
    modules = {
        global_name(name): module for stage in reversed(stages) for name, module in stage.named_modules() if name
    }

    def hook(name: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.setdefault(name, []).append(tuple(tensor.detach().clone() for tensor in _tensors(output)))

        return keep

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        passed.positions.append(args[1].positions.detach().clone())
        passed.places.append(args[1].local_places().tolist())

    def ask(name: str) -> Any:
        def record(layer: int, chosen: Tensor) -> None:
            passed.experts.setdefault(name, []).append(chosen.detach().clone())

        def with_record(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x, packed = args
            return x, replace(packed, record_experts=record)

        return with_record

    # After the hooks of the engine, which exchange tokens.
    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    handles.append(stages[0].register_forward_pre_hook(look))
    if engine.data_ranks.everyone.size == 1:
        blocks = {name: m for name, m in modules.items() if hasattr(m, "router") and hasattr(m, "experts")}
        handles += [block.register_forward_pre_hook(ask(name)) for name, block in blocks.items()]
    try:
        passed.outputs = engine.forward_batch(batch, oracle_loss(critic=case.critic).request)
    finally:
        for handle in handles:
            handle.remove()
    return found, passed


def plan_of(engine: Any, case: Case) -> ParallelPlan:
    """The parallel plan of the engine's model."""
    model = registry().model_for(engine.hf_config.model_type, case.model).load()
    return model.parallel_plan(model.arguments.from_hf_config(engine.hf_config, critic=case.critic))


def is_partial_sum(name: str, plan: ParallelPlan, tensor_ranks: int, expert_ranks: int = 1) -> bool:
    """Whether the module's output is not a shard of the output on one process.

    Inside a tensor region, ranks hold partial sums; sharded experts (``ep`` or ``etp``) get other rows or give partial
    sums. So do adapters inside of them.
    """
    around = ancestors(name)
    roles = {role for pattern, role in plan.roles.items() if any(matches(pattern, part) for part in around)}
    return (tensor_ranks > 1 and "row" in roles) or (expert_ranks > 1 and "expert" in roles)


def own_and_expected(
    own: Tensor,
    whole: Tensor,
    n_tokens: int,
    place: Mapping[str, int],
    sizes: Mapping[str, int],
    *,
    longest: int | None = None,
    places: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """A rank's output without padding, and the same part of the output on one process.

    Rows are tokens, sharded over c and, outside of tensor regions, then over t; other dims are sharded over t.

    Args:
        own: output on this rank.
        whole: output on one process.
        n_tokens: T, without padding.
        place: coordinates of this rank, by axis (``cp``, ``tp``).
        sizes: of these axes.
        longest: T of the longest micro-batch, to which a pipeline pads all others.
        places: of this context rank's tokens in the padded pack; ``None`` for equal parts in its order.

    Returns:
        ``None`` if the shapes fit no such sharding.
    """
    cut = place_of(own, whole, n_tokens, place, sizes, longest=longest, places=places)
    return None if cut is None else (own[: len(cut[0])] if cut else own, whole[cut])


def place_of(
    own: Tensor,
    whole: Tensor,
    n_tokens: int,
    place: Mapping[str, int],
    sizes: Mapping[str, int],
    *,
    longest: int | None = None,
    places: Sequence[int] | None = None,
) -> tuple[Any, ...] | None:
    """The index of the part of ``whole`` that corresponds to ``own``, as in ``own_and_expected``; empty for all of it.

    It begins with a list of tokens, and slices of the other dims follow. ``own`` may have padding after these tokens.
    """
    if own.ndim != whole.ndim or not own.ndim or whole.shape[0] != n_tokens:
        return () if own.shape == whole.shape else None
    c, t = sizes["cp"], sizes["tp"]
    if places is None:
        part = -(-(longest or n_tokens) // (c * t)) * t
        places = range(place["cp"] * part, (place["cp"] + 1) * part)
    rows, per_rank = own.shape[0], len(places) // t
    held = {per_rank: places[place["tp"] * per_rank :][:per_rank], len(places): places, c * len(places): range(rows)}
    found = held.get(rows, range(rows) if rows == n_tokens else None)
    if found is None or (rows == n_tokens < c * len(places) and rows in held):
        return None
    # A rank holds its tokens in the order of the pack, which ends in padding.
    cut: list[Any] = [[token for token in found if token < n_tokens]]
    for extent, whole_extent in zip(own.shape[1:], whole.shape[1:], strict=True):
        if extent == whole_extent:
            cut.append(slice(None))
        elif extent * t == whole_extent:
            cut.append(slice(place["tp"] * extent, (place["tp"] + 1) * extent))
        else:
            return None
    return tuple(cut)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for name in sorted(output):
            yield from _tensors(output[name])
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)
    elif is_dataclass(output) and not isinstance(output, type):
        for entry in fields(output):
            yield from _tensors(getattr(output, entry.name))
