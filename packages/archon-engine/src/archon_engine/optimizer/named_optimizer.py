"""Optimizers over named parameters, with state under the parameters' global names. All but Muon are torch's.

These work element by element, so they get each rank's part of a sharded parameter as a plain tensor, because DTensor's
dispatch would take longer than the update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from archon_core.contracts.engine_config import OptimizerConfig
from archon_core.errors import ConfigError, WeightsError
from archon_engine.optimizer.lr_schedule import lr_factor
from archon_engine.optimizer.muon import Muon
from archon_engine.parallel.shards import local_values

_ADAM_ENTRIES = frozenset({"step", "exp_avg", "exp_avg_sq"})
_STATE_ENTRIES: Mapping[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.AdamW: _ADAM_ENTRIES,
    torch.optim.Adam: _ADAM_ENTRIES,
    torch.optim.SGD: frozenset({"momentum_buffer"}),
    Muon: frozenset({"momentum_buffer"}),
}
"""The state entries of each optimizer, per parameter."""


class NamedOptimizer:
    """One or two optimizers over the parameters of a module; two for ``muon``, which updates hidden matrices only.

    Attributes:
        parameters: name -> trainable parameter, each once.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        *,
        total_steps: int | None,
        holders: ProcessGroup | None = None,
        compute_dtype: torch.dtype | None = None,
        option: str = "optimizer",
    ) -> None:
        """Args:
            parameters: name -> parameter; parameters that need no gradient are ignored.
            config: the options.
            total_steps: optimizer steps of the whole run; ``None`` if unknown.
            holders: the processes that hold parts of the same parameters; ``None`` for all.
            compute_dtype: the type of forward and backward passes; ``None`` for that of the parameters.
            option: dotted name of the options' section, for messages.

        Raises:
            ConfigError: the learning rate depends on the number of steps, which is unknown.
        """
        if total_steps is None and (config.lr_scheduler_type != "constant" or config.warmup_steps_proportion > 0):
            raise ConfigError(
                f"{option}.lr_scheduler_type={config.lr_scheduler_type} with warmup_steps_proportion="
                f"{config.warmup_steps_proportion}: found no number of steps, which warm-up and decay depend on; pass "
                "total_steps, or use constant without warm-up"
            )
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self._config = config
        self._option = option
        self._total_steps = total_steps
        # What the optimizers hold: the parameters themselves, or parameters around their local parts.
        whole = _hidden_matrices(self.parameters) if config.type == "muon" else {}
        self._updated = {
            name: nn.Parameter(local_values(p)) if isinstance(p, DTensor) and name not in whole else p
            for name, p in self.parameters.items()
        }
        self._optimizers = _build(self._updated, config, holders, compute_dtype)
        self._owner = {p: o for o in self._optimizers for group in o.param_groups for p in group["params"]}

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step ``step``, counted from 0."""
        config, total = self._config, self._total_steps or 0
        return config.lr * lr_factor(
            step,
            self._total_steps,
            config.lr_scheduler_type,
            warmup_steps=round(total * config.warmup_steps_proportion),
            decay_steps=round(total * config.decay_steps_proportion),
            min_ratio=config.min_lr_ratio,
        )

    def step(self, learning_rate: float) -> None:
        """Update the parameters from their gradients."""
        # Every time, because FSDP2 may move a parameter's storage when its first forward pass begins.
        self.follow_parameters()
        parts = self._parts()
        for parameter, part in parts:
            part.grad = None if parameter.grad is None else local_values(parameter.grad)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
                _align_gradients(group["params"])
            optimizer.step()
        for _, part in parts:
            part.grad = None

    def follow_parameters(self) -> None:
        """Refer to the parameters' current storage, and release the previous one."""
        for parameter, part in self._parts():
            part.data = local_values(parameter)

    def states(self) -> Iterator[dict[str, Any]]:
        """Yield the state of every parameter as the optimizers hold it, for moving it between devices."""
        for optimizer in self._optimizers:
            yield from optimizer.state.values()

    def _parts(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Parameters, each with the plain tensor that the optimizers update instead."""
        return [(p, self._updated[name]) for name, p in self.parameters.items() if self._updated[name] is not p]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, dict[str, Any]]:
        """Parameter name -> its state tensors, such as ``exp_avg``, sharded like the parameter; empty before the first
        step."""
        states = {name: self._owner[p].state[p] for name, p in self._updated.items() if p in self._owner[p].state}
        return {
            name: {key: _sharded_like(value, self.parameters[name]) for key, value in state.items()}
            for name, state in states.items()
        }

    def clear_state(self) -> None:
        """Drop all state."""
        for optimizer in self._optimizers:
            optimizer.state.clear()

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replace all state by ``state``, as the method of this name returned it for parameters of equal names and
        shapes.

        Raises:
            WeightsError: it belongs to another type of optimizer; no state is changed.
        """
        names = {p: name for name, p in self._updated.items()}
        loads: list[tuple[torch.optim.Optimizer, dict[str, Any]]] = []
        for optimizer in self._optimizers:
            ordered = [names[p] for group in optimizer.param_groups for p in group["params"]]
            entries = {
                place: {key: self._as_updated(value, name) for key, value in state[name].items()}
                for place, name in enumerate(ordered)
                if state.get(name)
            }
            self._check_entries(optimizer, {ordered[place]: set(entry) for place, entry in entries.items()})
            loads.append((optimizer, {"state": entries, "param_groups": optimizer.state_dict()["param_groups"]}))
        # torch's loading knows which entries belong on the device: a fused optimizer reads its step there.
        for optimizer, saved in loads:
            optimizer.load_state_dict(saved)

    def _as_updated(self, value: Tensor, name: str) -> Tensor:
        """A state tensor as the optimizer that updates the parameter keeps it."""
        return value if isinstance(self._updated[name], DTensor) else local_values(value)

    def _check_entries(self, optimizer: torch.optim.Optimizer, entries: Mapping[str, set[str]]) -> None:
        expected = _STATE_ENTRIES[type(optimizer)]
        for name, found in entries.items():
            if found != expected:
                raise WeightsError(
                    f"optimizer state of {name}: found {', '.join(sorted(found))}; {self._option}.type="
                    f"{self._config.type!r} keeps {', '.join(sorted(expected))}; use the type with which the "
                    "state was saved"
                )


def _align_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Store gradients in the order of their parameters: fused optimizers read both as one row of numbers, and those of
    the CPU do not check strides (torch 2.11 to 2.13)."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to the vectors of norms and biases, nor to the stacked biases of
    experts."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def _hidden_matrices(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters that Muon updates: matrices of layers, including the stacked ones of experts. Filters of
    convolutions, stacked too, are single rows."""
    return {
        name: p
        for name, p in parameters.items()
        if name.startswith("layers.") and is_decayed(name, p) and (p.ndim == 2 or (p.ndim == 3 and p.shape[1] > 1))
    }


def _sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """The state of a parameter's local part as a DTensor; entries that are not per element, such as step counts,
    unchanged."""
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor) or value.ndim != parameter.ndim:
        return value
    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _build(
    parameters: Mapping[str, nn.Parameter],
    config: OptimizerConfig,
    holders: ProcessGroup | None = None,
    compute_dtype: torch.dtype | None = None,
) -> list[torch.optim.Optimizer]:
    if config.type == "muon":
        # Muon is for hidden matrices; embeddings, heads, norms and biases take AdamW
        # (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
        hidden = _hidden_matrices(parameters)
        others = _build(
            {name: p for name, p in parameters.items() if name not in hidden},
            OptimizerConfig(**{**vars(config), "type": "adamw"}),
        )
        if not hidden:  # a pipeline stage of an embedding alone
            return others
        muon = Muon(
            hidden.values(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.beta1,
            holders=holders,
            compute_dtype=compute_dtype,
        )
        return [muon, *others]
    groups = [
        {"params": [p for n, p in parameters.items() if is_decayed(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in parameters.items() if not is_decayed(n, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        return []
    betas = (config.beta1, config.beta2)
    # One pass over weights, gradients and moments. The rest of torch's devices take a pass per operation.
    fused = all(p.device.type in ("cuda", "cpu") for p in parameters.values())
    match config.type:
        case "adamw":
            return [
                torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=fused, foreach=not fused)
            ]
        case "adam":
            return [torch.optim.Adam(groups, lr=config.lr, betas=betas, eps=config.eps, fused=fused, foreach=not fused)]
        case "sgd":
            return [torch.optim.SGD(groups, lr=config.lr, momentum=config.beta1, foreach=True)]
    raise AssertionError(f"optimizer type {config.type!r} passed validation")
