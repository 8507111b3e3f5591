"""Compares the generated package with ``transformers``' model on the same weights and tokens, part by part."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.models.box import Box
from archon_engine.models.key_report import form_of
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_engine.models.weight_conversion import fill_ours, read_from
from archon_scaffold.models.architecture import Gap, Place
from archon_scaffold.models.plain_experts import PlainExperts
from archon_scaffold.models.probes import SAME
from archon_scaffold.models.twin import Twin


def find_difference(source: Path, module: str, twin: Twin) -> Gap | None:
    """The first difference between the package in ``source`` and ``transformers``; ``None`` if there is none.

    Args:
        source: the folder that holds the package ``module``.
        twin: the model to compare with.
    """
    with _importable(source, module) as parts:
        try:
            arguments = parts["arguments"].ModelArguments.from_hf_config(twin.config, critic=False)
            experts = (None, PlainExperts()) if hasattr(arguments, "moe") else ()
            ours = parts["model"].Decoder(arguments, *experts)
            weights = parts["weight_map"].weight_map(arguments).resolve(weight_shapes(ours))
            theirs = twin.module.state_dict()
            form, keys = form_of({name: tuple(tensor.shape) for name, tensor in theirs.items()}, weights)
            if not keys.fits:
                return Gap("weights", f"the weights of transformers' model do not fit: {'; '.join(keys.lines())}")
            with torch.no_grad():
                for name, weight in named_weights(ours).items():
                    fill_ours(weight, name, Box.whole(tuple(weight.shape)), form, read_from(theirs))
        except Exception as error:  # of the written package, or of a configuration that lacks what it reads
            return Gap("arguments", f"the written model cannot be built: {type(error).__name__}: {error}")
        return _first_difference(_trace(ours, twin), twin)


def find_refusal(source: Path, module: str, config: Any) -> Gap | None:
    """Why the package in ``source`` refuses the configuration that it was generated from; ``None`` if it accepts it."""
    with _importable(source, module) as parts:
        try:
            parts["arguments"].ModelArguments.from_hf_config(config, critic=False)
        except Exception as error:  # of the written package
            return Gap("arguments", f"the configuration at hand is refused: {type(error).__name__}: {error}")
    return None


def _first_difference(ours: dict[str, Tensor], twin: Twin) -> Gap | None:
    places: dict[str, Place] = {"attention": "attention", "mlp": "feed-forward"}
    ours = {re.sub(r"\.moe$", ".mlp", name): value for name, value in ours.items()}
    logits = _distance(ours["logits"], twin.trace["logits"])
    for name, right in twin.trace.items():
        if name in ours and not _distance(ours[name], right) <= SAME:
            place = places.get(name.rpartition(".")[2], "layer" if name.startswith("layers.") else "decoder")
            error = _distance(ours[name], right)
            return Gap(
                place,
                f"{name} is the first part whose output differs from transformers' (by {error:.1e} of the largest; "
                f"logits by {logits:.1e}): compare it, and its input, with transformers' source",
            )
    return None


def _distance(found: Tensor, right: Tensor) -> float:
    if found.shape != right.shape:
        return float("inf")
    return float((found - right).abs().max() / right.abs().max())


def _trace(ours: nn.Module, twin: Twin) -> dict[str, Tensor]:
    """The outputs of the same parts as in ``Twin.trace``, by the same names."""
    trace: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            trace[name] = output

        return hook

    def keep_input(_module: nn.Module, args: tuple[Any, ...], _output: Any) -> None:
        trace["embed"] = args[0]

    next(iter(ours.layers.values())).register_forward_hook(keep_input)
    for name, part in ours.named_modules():
        if re.sub(r"\.moe$", ".mlp", name) in twin.trace and name != "embed":
            part.register_forward_hook(keep(name))
    packed = PackedSequences.from_lengths((len(twin.ids),), head=HeadInputs(outputs=("logits",)))
    with torch.no_grad():
        trace["logits"] = ours(twin.ids, packed)["logits"]
    return trace


@contextmanager
def _importable(source: Path, module: str) -> Iterator[dict[str, Any]]:
    """Import the package's modules inside the block, and remove them from ``sys.modules`` afterwards."""
    sys.path.insert(0, str(source))
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        importlib.invalidate_caches()
        yield {name: importlib.import_module(f"{module}.{name}") for name in ("arguments", "model", "weight_map")}
    finally:
        sys.dont_write_bytecode = written
        sys.path.remove(str(source))
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            del sys.modules[name]
