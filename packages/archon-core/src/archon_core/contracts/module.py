"""Optional attributes of a model's modules and arguments, beyond ``contracts.model``, and their defaults.

The engine looks for these attributes by name, on modules of any package. The layers of ``archon_engine.nn`` declare the
attributes that they need, so a model built from them declares none itself.

| attribute | on | read by | without it |
|---|---|---|---|
| ``parallel`` | layers, expert blocks | tensor parallelism | the layer does not learn its tensor ranks |
| ``adds_bias`` | projections | tensor parallelism | the projection cannot have the role ``row`` |
| ``accepts_sequence_shards`` | attention | context parallelism | the attention needs whole sequences |
| ``accepts_any_order`` | attention | context parallelism | ranks hold parts of a pack in its order |
| ``eager_methods`` | attention, expert blocks | compilation | ``forward`` stays eager |
| ``initial_values`` | owners of parameters | random initialisation | the rule of ``initial_values`` below |
| ``fill_buffers`` | owners of buffers | materialisation | buffers stay uninitialised |
| ``max_positions`` | the model | generation | no limit beyond that of its rotations |
| ``decisions`` | arguments | assembly | the model follows its configuration |
| ``attention_dropout`` | arguments | assembly | 0 |

Protocols describe attributes that the engine sets; functions below read attributes with a default. A test checks that
the engine reads no other attribute of a module by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

    from archon_core.contracts.decisions import Decision
    from archon_core.contracts.model import ModelArguments
    from archon_core.contracts.packed import TensorRanks

InitialValue = Literal["normal", "ones", "zeros", "fan_in", "log_uniform"]
"""Initial values of a parameter. ``normal`` has mean 0 and the standard deviation of the model's configuration;
``fan_in`` is uniform within 1 / sqrt(inputs), as ``torch.nn.Linear`` starts; ``log_uniform`` is the logarithm of a
uniform number between 0.01 and 16, as decay rates of Gated DeltaNet start in transformers."""


@runtime_checkable
class TensorParallelLayer(Protocol):
    """A layer that computes differently on several tensor ranks: vocabularies, norms over projections, expert blocks.

    Attributes:
        parallel: this rank's place among them. ``None`` when the layer is built and without tensor parallelism;
            assembly sets it, also on every tensor region of the plan, whether declared there or not.
    """

    parallel: TensorRanks | None


@runtime_checkable
class RowProjection(Protocol):
    """A projection that may hold a part of its inputs, so that its outputs are partial sums (role ``row``).

    Attributes:
        adds_bias: true when the layer is built. Assembly sets it to false on all tensor ranks but the first, since the
            sum over ranks must hold the bias once. The layer still lets a zero gradient reach its bias there: that
            gradient is reduced over all ranks.
    """

    adds_bias: bool


@runtime_checkable
class FillsBuffers(Protocol):
    """A module that keeps constants in buffers, such as rotary frequencies."""

    def fill_buffers(self) -> None:
        """Write the constants. Called after a module that was built on the meta device got uninitialised storage."""


def accepts_sequence_shards(attention: nn.Module) -> bool:
    """Whether a core attention module honours ``PackedSequences.context``: it computes this rank's tokens from those
    of all context ranks. Default: false."""
    return getattr(attention, "accepts_sequence_shards", False)


def accepts_any_order(attention: nn.Module) -> bool:
    """Whether a core attention module works on any of a pack's tokens, as ``ContextRanks.places`` names them. A
    recurrent one needs neighbours: with rank i the i-th part of the pack. Default: false."""
    return getattr(attention, "accepts_any_order", False)


def eager_methods(part: nn.Module) -> tuple[str, ...]:
    """Methods of core attention or of an expert block that ``torch.compile`` must leave eager, because they depend on
    lengths of sequences or on the routing. Only these may use an expert block's ``experts``. The default
    ``("forward",)`` leaves the whole module eager."""
    return getattr(part, "eager_methods", ("forward",))


def initial_values(owner: nn.Module) -> Mapping[str, InitialValue]:
    """Attribute name of a parameter -> its initial values, for parameters that deviate from the rule.

    The rule: matrices, embeddings and stacks of matrices are ``normal``, biases ``zeros``, and other vectors, which
    scale norms, ``ones``.
    """
    return getattr(owner, "initial_values", {})


def max_positions(model: nn.Module) -> int | None:
    """The longest sequence that a model has positions for, in tokens; ``None`` where positions are computed."""
    return getattr(model, "max_positions", None)


def model_decisions(arguments: ModelArguments) -> Sequence[Decision]:
    """Deviations of a model from its configuration (``arguments.decisions``). ``option`` names an entry of the
    configuration; assembly adds the section's name as a prefix."""
    return getattr(arguments, "decisions", ())


def attention_dropout(arguments: ModelArguments) -> float:
    """The dropout that a model's configuration asks for. No model applies it, so that numbers do not depend on the
    layout; an engine with ``disable_dropout=false`` refuses a value above 0."""
    return getattr(arguments, "attention_dropout", 0.0)
