"""Global names of a module's weights: names in the whole model, without the segments that wrappers add.

Weight maps, checkpoints, publication and random initialisation use these names. So a stage, a compiled or a
checkpointed module has the same names as a bare module.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from archon_core.models.box import Shape
from archon_engine.models.staged import stages_of

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})


def global_name(name: str) -> str:
    """``name`` without the segments that ``torch.compile`` and checkpoint wrappers insert."""
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPERS)


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by global name; a tied parameter under each of its names."""
    states = [stage.state_dict(keep_vars=True) for stage in stages_of(module)]
    return {global_name(name): weight for state in states for name, weight in state.items()}


def weight_shapes(module: nn.Module) -> dict[str, Shape]:
    """Global name -> shape, as ``WeightMap.resolve`` takes them, of a whole module, which may be on the meta device."""
    return {name: tuple(weight.shape) for name, weight in named_weights(module).items()}


def owners(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Yield every parameter once: global name, owning module, attribute name, parameter."""
    seen: set[nn.Parameter] = set()
    for prefix, owner in (found for stage in stages_of(module) for found in stage.named_modules()):
        for attribute, parameter in owner.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield global_name(f"{prefix}.{attribute}" if prefix else attribute), owner, attribute, parameter
