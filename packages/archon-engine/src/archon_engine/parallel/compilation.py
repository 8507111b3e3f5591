"""Compiles every block separately with ``torch.compile``, into graphs that equal blocks share.

Only ``forward`` of a block is replaced, so its name stays the same; FSDP2's hooks remain outside the graphs. Graphs
contain only plain tensors and functional collectives: weights are unwrapped first, because tracing DTensors takes
several times as long. Attention stays eager, because sequence lengths differ from batch to batch and each combination
would need a graph. So do exchanges in flight, and methods of expert blocks whose shapes depend on the routing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.module import eager_methods
from archon_core.errors import ConfigError
from archon_core.models.name_pattern import matches_any
from archon_core.models.parallel_plan import ParallelPlan
from archon_engine import compat
from archon_engine.nn.tensor_parallel import local_weight
from archon_engine.parallel.activation_checkpointing import is_kept
from archon_engine.parallel.recompute_log import RecomputeLog
from archon_engine.parallel.units import blocks_of

SMALLEST_BUDGET = 1e-9
"""Used instead of 0, with which AOTAutograd also recomputes random numbers and collectives, which is wrong (torch
2.13)."""


@dataclass(frozen=True)
class Keeping:
    """The results that compiled graphs keep from forward to backward; by default the partitioner chooses.

    Attributes:
        settings: settings of AOTAutograd.
        kept: whether the result of an operation must be kept.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    kept: Callable[[Any], bool] | None = None

    @classmethod
    def by_operation(cls) -> Keeping:
        """Keep what selective checkpointing keeps."""
        return cls({"aggressive_recomputation": True}, _is_kept_or_random)

    @classmethod
    def within(cls, budget: float) -> Keeping:
        """Keep a share of the default: 1 for all of it, 0 for only inputs and results that cannot be recomputed."""
        return cls({"activation_memory_budget": max(budget, SMALLEST_BUDGET)}, compat.is_random)


def _is_kept_or_random(operation: Any) -> bool:
    return is_kept(operation) or compat.is_random(operation)


class CompiledBlocks:
    """The compiled blocks of a module. torch compiles ``forward`` on its first call.

    Args:
        module: changed in place.
        plan: names the blocks and their attention.
        keeping: what graphs keep for backward.
        log: records what graphs recompute.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: ParallelPlan,
        *,
        keeping: Keeping | None = None,
        log: RecomputeLog | None = None,
    ) -> None:
        self._is_suspended = False
        for name, part in module.named_modules():
            if matches_any((*plan.attention, *plan.experts), name):
                for method in eager_methods(part):
                    disabled = torch.compiler.disable(
                        getattr(part, method), reason="lengths or loads differ from batch to batch"
                    )
                    setattr(part, method, disabled)
        keeping = keeping or Keeping()
        settings, inner_compile = dict(keeping.settings), None
        if log is not None:
            # A cached graph would bypass the log.
            settings["enable_autograd_cache"], inner_compile = False, log.inner_compile
        backend = compat.inductor(settings, kept=keeping.kept, inner_compile=inner_compile)
        eager = set(_eager_modules(module, plan))
        compiled: dict[Any, Callable[..., Any]] = {}
        for _, block in blocks_of(module, plan):
            function = type(block).forward
            if function not in compiled:
                compiled[function] = compat.compile_isolated(function, backend)
            places = _places(block, eager)
            block.forward = partial(self._run, places, block.forward, partial(compiled[function], block))

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Run blocks eagerly inside the context: generation's shapes and caches would need many graphs."""
        before, self._is_suspended = self._is_suspended, True
        try:
            yield
        finally:
            self._is_suspended = before

    def _run(
        self,
        places: list[tuple[dict[str, Tensor], str]],
        eager: Callable[..., Any],
        compiled: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if self._is_suspended:
            return eager(*args, **kwargs)
        weights = [parameters[name] for parameters, name in places]
        try:
            for (parameters, name), weight in zip(places, weights, strict=True):
                parameters[name] = local_weight(weight)
            return compiled(*args, **kwargs)
        finally:
            for (parameters, name), weight in zip(places, weights, strict=True):
                parameters[name] = weight


def check_compiler(device_type: str, *, option: str, environment: Mapping[str, str] = os.environ) -> None:
    """Check that Inductor can build code for the CPU.

    Raises:
        ConfigError: there is no C++ compiler.
    """
    default = "clang++" if sys.platform == "darwin" else "g++"
    compiler = environment.get("CXX", default)
    if device_type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"{option}: found true on a CPU without the C++ compiler {compiler!r}, which compiling for a CPU needs; "
            f"install {default}, name another compiler in the environment variable CXX, or set {option}=false"
        )


def _eager_modules(module: nn.Module, plan: ParallelPlan) -> Iterator[nn.Module]:
    """Modules that stay eager. Their parameters remain DTensors, which they unwrap themselves."""
    for name, part in module.named_modules():
        if matches_any(plan.experts, name):
            yield from (part if eager_methods(part) == ("forward",) else part.experts).modules()


def _places(block: nn.Module, eager: Collection[nn.Module]) -> list[tuple[dict[str, Tensor], str]]:
    """The dictionary and the key of every parameter in the block's compiled parts.

    FSDP2 replaces the parameters but not the dictionaries, so they need to be looked up only once.
    """
    return [
        (part._parameters, name)  # type: ignore[misc]
        for part in block.modules()
        if part not in eager
        for name, parameter in part._parameters.items()
        if parameter is not None
    ]
