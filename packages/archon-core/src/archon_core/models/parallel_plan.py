"""The parallel plan: the roles of a model's modules in each kind of parallelism. It is data; the engine shards.

Module names are patterns as in weight rules (``archon_core.models.name_pattern``): ``layers.{layer}.attention.q_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from archon_core.errors import ModelError
from archon_core.models.name_pattern import matches

if TYPE_CHECKING:
    from torch import nn

Role = Literal["vocabulary", "column", "row", "sequence", "head_norm", "replicated", "expert"]
"""The role of a module's parameters in tensor parallelism.

- ``vocabulary``: embedding or language-model head, sharded over vocabulary rows; the last ranks may hold fewer.
- ``column``: a projection whose outputs are sharded; its bias too.
- ``row``: a projection whose inputs are sharded and whose outputs are summed; its bias is added once.
- ``sequence``: replicated weights on sequence-sharded activations (norms of the residual stream, a value head,
  routers): their gradient is summed over the tensor ranks.
- ``head_norm``: replicated weights on head-sharded activations, each rank seeing other heads: likewise summed.
- ``replicated``: weights inside a tensor region that every rank holds whole and applies to all tokens, such as the down
  projection of a low-rank pair; each rank uses the result for its heads, so the gradient is summed likewise.
- ``expert``: stacked expert weights, sharded over expert and expert tensor ranks.
"""


@dataclass(frozen=True)
class HeadCounts:
    """Numbers of heads in the whole model.

    Attributes:
        query: attention heads; t x c divides it.
        key_value: key and value heads; it divides ``query``.
    """

    query: int
    key_value: int


@dataclass(frozen=True)
class ParallelPlan:
    """The roles of a model's modules in each kind of parallelism.

    Attributes:
        roles: pattern of modules that own parameters -> their role. Every parameter has exactly one.
        tensor_regions: modules such as attention and MLP. Sequence shards of their first positional argument are
            gathered, and their only result is scattered to sequence shards. Column, row, head_norm and replicated
            modules lie in a region; all others lie outside.
        key_value: column modules whose outputs, joined over the tensor ranks, are the key or the value heads as
            attention takes them: projections, or norms over whole projections behind them. Where t does not divide the
            key heads, ranks exchange these outputs so that each has whole heads; a plan that names none is refused
            there.
        attention: core attention modules and recurrent cores, which read tokens of other context ranks.
        experts: expert blocks, where tokens are dispatched.
        units: the pipeline's units in order; a pattern such as ``layers.{layer}`` may match several.
        blocks: pattern of the repeated blocks. Each is an FSDP2 group, and is recomputed and compiled as a whole.
        heads: head counts; ``None`` for a model without attention heads.
        other_heads: what -> number of further heads that t divides, such as the key heads of recurrent layers.
        batched: whether hidden states inside the module have a leading batch dim of 1, [1, T, hidden], as modules of
            other libraries expect. A tensor region may then take them as the keyword argument ``hidden_states`` and
            return them as the first of several results.
        refusals: axis letter -> why this model, unlike others of the same spec, does not support the axis: a sentence
            that ends with the fix.
    """

    roles: Mapping[str, Role]
    tensor_regions: tuple[str, ...] = ()
    key_value: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    units: tuple[str, ...] = ("embed", "layers.{layer}", "norm", "head")
    blocks: str = "layers.{layer}"
    heads: HeadCounts | None = None
    other_heads: Mapping[str, int] = field(default_factory=dict)
    batched: bool = False
    refusals: Mapping[str, str] = field(default_factory=dict)

    def role_of(self, module_name: str) -> Role:
        """The role of a parameter-owning module.

        Raises:
            ModelError: no pattern matches, or several.
        """
        found = [pattern for pattern in self.roles if matches(pattern, module_name)]
        if len(found) != 1:
            what = f"several patterns match it: {', '.join(found)}" if found else "no pattern matches it"
            raise ModelError(
                f"parallel plan: module {module_name!r} owns parameters and {what}; give it exactly one role"
            )
        return self.roles[found[0]]

    def validate(self, module: nn.Module) -> None:
        """Check the plan against a whole model, which may be on the meta device.

        Raises:
            ModelError: a parameter does not have exactly one role and one unit, or a pattern matches nothing; the
                message lists all of these.
        """
        names = [name for name, _ in module.named_modules()]
        problems: list[str] = []
        for name, owner in module.named_modules():
            own = [attribute for attribute, _ in owner.named_parameters(recurse=False, remove_duplicate=False)]
            if not own:
                continue
            shown = ", ".join(f"{name}.{attribute}" for attribute in own)
            roles = [pattern for pattern in self.roles if matches(pattern, name)]
            units = [pattern for pattern in self.units if any(matches(pattern, part) for part in ancestors(name))]
            if len(roles) != 1:
                problems.append(f"{shown}: {len(roles)} roles ({', '.join(roles) or 'no pattern matches'})")
            if len(units) != 1:
                problems.append(f"{shown}: in {len(units)} pipeline units ({', '.join(units) or 'no pattern matches'})")
        patterns = (
            *self.roles,
            *self.tensor_regions,
            *self.key_value,
            *self.attention,
            *self.experts,
            *self.units,
            self.blocks,
        )
        problems += [
            f"pattern {pattern!r} matches no module"
            for pattern in patterns
            if not any(matches(pattern, name) for name in names)
        ]
        if problems:
            raise ModelError(
                "the parallel plan does not fit the module; every parameter needs one role and one pipeline unit:\n  "
                + "\n  ".join(problems)
            )


def layer_number(name: str) -> int:
    """The index of the layer that contains a module: the first number among the segments of its name."""
    return next(int(segment) for segment in name.split(".") if segment.isdecimal())


def ancestors(name: str) -> list[str]:
    """The names of the enclosing modules and of the module itself: ``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    segments = name.split(".")
    return [".".join(segments[: i + 1]) for i in range(len(segments))]
