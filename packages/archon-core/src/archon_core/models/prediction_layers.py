"""Layers for multi-token prediction (MTP), which checkpoints store behind the decoder's layers (arXiv:2412.19437,
section 2.2).

They predict further tokens from the last hidden states, for denser training or for speculative decoding. A decoder
leaves them out without a change in what it computes. Imports no torch.
"""

from __future__ import annotations

from archon_core.contracts.decisions import Decision
from archon_core.models.weight_rules import Drop

_DEEPEST = 6
"""Segments of the longest name inside a layer: ``mlp.experts.0.up_proj.weight_scale_inv`` has five."""


def drop_prediction_layers(n_layers: int, n_prediction_layers: int) -> list[Drop]:
    """Rules for the weights ``model.layers.{N}.*`` of the layers behind the first ``n_layers``."""
    # A placeholder stands for one segment.
    inside = [".".join(f"{{part{i}}}" for i in range(depth)) for depth in range(1, _DEEPEST + 1)]
    layers = range(n_layers, n_layers + n_prediction_layers)
    return [Drop(f"model.layers.{layer}.{name}") for layer in layers for name in inside]


def prediction_layer_decisions(n_prediction_layers: int) -> tuple[Decision, ...]:
    """The decision to leave them out, for a model's ``arguments.decisions``; none if the model has no such layers."""
    if not n_prediction_layers:
        return ()
    reason = (
        "layers that predict further tokens are not part of the decoder: their weights are not read, trained or saved"
    )
    return (Decision("num_nextn_predict_layers", str(n_prediction_layers), "0", reason),)
