"""transformers' tensor-parallel plans in our terms: styles of projections become roles, and the modules that hold
them become regions.

Archon sums partial outputs where a region ends, transformers where a row-wise projection does. So the two must be the
same place, which the examined run shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import nn

from archon_core.models.name_pattern import matches
from archon_core.models.parallel_plan import Role
from archon_models_hf.names import Names, pattern_of
from archon_models_hf.traced_attention import AttentionFacts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_COLUMN = {"colwise": False, "colwise_gather_output": True, "colwise_rep": True}
"""Style -> whether every rank gets all outputs."""
_ROW = {"rowwise": False, "rowwise_split_input": True, "rowwise_rep": True}
"""Style -> whether every rank has all inputs."""
_KEY_VALUE = ("k_proj", "v_proj")
_REPLICATED = ("replicated_with_grad_allreduce", "replicate", "replicated", "sequence_parallel")


@dataclass(frozen=True)
class TensorFacts:
    """What tensor parallelism does with a model.

    Attributes:
        roles: our pattern of a projection -> column or row.
        gathering: column-wise projections whose outputs are gathered on every rank.
        splitting: row-wise projections that accept whole inputs and take the rank's part of them.
        regions: our patterns of the modules that hold them.
        key_value: our patterns of the projections to key heads and to value heads, where tensor ranks can exchange
            their outputs; empty where they cannot, so that every rank must have whole key heads.
        refusal: why the model cannot be cut, as a sentence with what to do; empty when it can.
    """

    roles: Mapping[str, Role] = field(default_factory=dict)
    gathering: frozenset[str] = frozenset()
    splitting: frozenset[str] = frozenset()
    regions: tuple[str, ...] = ()
    key_value: tuple[str, ...] = ()
    refusal: str = ""


def read_tensor_plan(
    config: PreTrainedConfig,
    base: nn.Module,
    names: Names,
    attention: Sequence[AttentionFacts],
    outputs: Mapping[nn.Module, Any],
    takes_tokens_first: Mapping[nn.Module, bool],
) -> TensorFacts:
    """The plan that transformers declares for a base model.

    Args:
        config: of the model.
        base: transformers' base model.
        names: of its parts.
        attention: of each layer.
        outputs: module -> its first output in the examined run.
        takes_tokens_first: module -> whether it was given the hidden states first, or by the name ``hidden_states``.
    """
    declared = getattr(config, "base_model_tp_plan", None) or {}
    if not declared:
        return _refused(f"transformers declares no tensor-parallel plan for {config.model_type}")
    roles: dict[str, Role] = {}
    gathering, splitting, regions = set(), set(), set()
    modules = dict(base.named_modules())
    for name, style in _styles(base, declared).items():
        module, pattern = modules.get(name), pattern_of(names.in_body(name))
        if style in _REPLICATED:
            continue
        if module is None or any(parameter.ndim > 2 for parameter in module.parameters(recurse=False)):
            return _refused(
                f"{config.model_type} has stacks of experts ({name}, which transformers cuts in the style {style!r}), "
                "and those inside of transformers' modules are sharded over data ranks only"
            )
        if style not in _COLUMN | _ROW or type(module) is not nn.Linear:
            return _refused(
                f"transformers cuts {name}, a {type(module).__name__}, in the style {style!r}; Archon cuts linear "
                f"projections, as {', '.join(_COLUMN)}, {', '.join(_ROW)}"
            )
        roles[pattern] = "column" if style in _COLUMN else "row"
        if _COLUMN.get(style):
            gathering.add(pattern)
        if _ROW.get(style):
            splitting.add(pattern)
        if style in _ROW:
            region = modules[name.rpartition(".")[0]]
            if outputs.get(module) is None or outputs.get(module) is not outputs.get(region):
                return _refused(
                    f"{type(region).__name__} of transformers computes further with the output of {name}, so the sum "
                    "over tensor ranks would come too late"
                )
            if not takes_tokens_first.get(region):
                return _refused(f"{type(region).__name__} of transformers takes its hidden states by another name")
            regions.add(pattern.rpartition(".")[0])
    outside = [p for p in roles if not any(p.startswith(f"{region}.") for region in regions)]
    if outside or not regions:
        return _refused(
            f"transformers' plan cuts {', '.join(outside) or 'nothing'} without a row-wise projection beside"
        )
    exchanged = {pattern for pattern, role in roles.items() if role == "column" and pattern not in gathering}
    return TensorFacts(
        roles,
        frozenset(gathering),
        frozenset(splitting),
        tuple(sorted(regions)),
        _key_value(getattr(base, names.layers), attention, exchanged),
    )


def _styles(base: nn.Module, declared: Mapping[str, str]) -> dict[str, str]:
    """Name of every module or parameter that the plan names -> its style."""
    known = [name for name, _ in base.named_modules() if name] + [name for name, _ in base.named_parameters()]
    patterns = {_translated(pattern): style for pattern, style in declared.items()}
    return {name: style for pattern, style in patterns.items() for name in known if matches(pattern, name)}


def _translated(pattern: str) -> str:
    """A pattern of transformers, in which ``*`` stands for one segment, as one of ours."""
    numbers = count()
    return re.sub(r"\*", lambda _: f"{{number{next(numbers)}}}", pattern)


def _key_value(
    layers: Sequence[nn.Module], attention: Sequence[AttentionFacts], exchanged: set[str]
) -> tuple[str, ...]:
    """The projections to key and value heads by transformers' usual names, if in all layers they have the sizes of the
    same number of heads and nothing else, and ``exchanged`` has their patterns."""
    if len({facts.n_kv_heads for facts in attention}) != 1:
        return ()
    patterns: dict[str, None] = {}
    for layer, facts in zip(layers, attention, strict=True):
        modules = dict(layer.named_modules())
        for name in (f"{facts.module}.{projection}" for projection in _KEY_VALUE):
            module, pattern = modules.get(name), f"layers.{{layer}}.{name}"
            if pattern not in exchanged or getattr(module, "out_features", 0) != facts.n_kv_heads * facts.head_dim:
                return ()
            patterns[pattern] = None
    return tuple(patterns)


def _refused(reason: str) -> TensorFacts:
    return TensorFacts(refusal=f"{reason}; leave t out, and use d or c for more ranks")
