"""Parts of a decoder's anatomy, for packages that read it from the entries of a ``config.json``. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from archon_core.errors import ModelError
from archon_core.models.anatomy import AttentionAnatomy, ExpertsAnatomy, LayerAnatomy, ModelAnatomy, WeightShape
from archon_core.models.parallel_plan import Role


class Entries:
    """The entries of a ``config.json``, checked when they are read.

    Args:
        entries: name -> value.

    Attributes:
        model_type: the family.
    """

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries
        self.model_type = str(entries.get("model_type"))

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer; ``default`` where the entry is absent or null.

        Raises:
            ModelError: it is none.
        """
        value = self._entries.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ModelError(
                f"{self.model_type} configuration: {name}: found {value!r}; allowed are integers from 1; set it"
            )
        return value

    def optional_size(self, name: str, default: int | None = None) -> int | None:
        """The same for an entry that may be null; ``default`` where it is absent."""
        return None if self.get(name, default) is None else self.size(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """Whether the entry is set; ``default`` where it is absent or null."""
        value = self._entries.get(name)
        return default if value is None else bool(value)

    def get(self, name: str, default: Any = None) -> Any:
        """The entry as it is."""
        return self._entries.get(name, default)


def linear(name: str, outputs: int, inputs: int, role: Role, *, bias: bool = False) -> Iterator[WeightShape]:
    """The parameters of a linear projection. Tensor ranks shard the outputs of a ``column`` and the inputs of a
    ``row``."""
    yield WeightShape(f"{name}.weight", (outputs, inputs), role, {"column": 0, "row": 1}.get(role))
    if bias:
        yield WeightShape(f"{name}.bias", (outputs,), role, 0 if role == "column" else None)


def gated_mlp(name: str, hidden: int, inner: int, *, bias: bool = False) -> Iterator[WeightShape]:
    """The parameters of a feed-forward block with projections ``gate_proj``, ``up_proj`` and ``down_proj``."""
    for projection in ("gate_proj", "up_proj"):
        yield from linear(f"{name}.{projection}", inner, hidden, "column", bias=bias)
    yield from linear(f"{name}.down_proj", hidden, inner, "row", bias=bias)


def expert_weights(experts: ExpertsAnatomy, hidden: int) -> Iterator[WeightShape]:
    """The parameters of a block of experts, and of its shared expert."""
    number, inner = experts.n_experts, experts.intermediate_size
    yield WeightShape("moe.router.weight", (number, hidden), "sequence")
    yield WeightShape("moe.experts.gate_proj", (number, inner, hidden), "expert", 1)
    yield WeightShape("moe.experts.up_proj", (number, inner, hidden), "expert", 1)
    yield WeightShape("moe.experts.down_proj", (number, hidden, inner), "expert", 2)
    if experts.shared_intermediate_size:
        width = experts.shared_intermediate_size
        # Every tensor rank applies the whole shared expert to its tokens.
        yield WeightShape("moe.shared.gate_proj.weight", (width, hidden), "sequence")
        yield WeightShape("moe.shared.up_proj.weight", (width, hidden), "sequence")
        yield WeightShape("moe.shared.down_proj.weight", (hidden, width), "sequence")
        if experts.shared_gate:
            yield WeightShape("moe.shared_gate.weight", (1, hidden), "sequence")


def norm(name: str, width: int, role: Role = "sequence") -> WeightShape:
    """The weight of a norm."""
    return WeightShape(f"{name}.weight", (width,), role)


def decoder_layer(
    hidden: int,
    attention_weights: Iterable[WeightShape],
    attention: AttentionAnatomy,
    *,
    experts: ExpertsAnatomy | None = None,
    intermediate: int = 0,
) -> LayerAnatomy:
    """A pre-norm layer of attention and experts or, without them, a gated feed-forward block ``mlp``.

    Args:
        hidden: width of the residual stream.
        attention_weights: the parameters of the attention.
        attention: its sizes.
        experts: of the layer; ``None`` for a dense one.
        intermediate: width inside the feed-forward block of a dense layer.
    """
    feed_forward = expert_weights(experts, hidden) if experts else gated_mlp("mlp", hidden, intermediate)
    return LayerAnatomy(
        weights=(*attention_weights, *feed_forward, norm("attention_norm", hidden), norm("mlp_norm", hidden)),
        attention=attention,
        intermediate_size=0 if experts else intermediate,
        experts=experts,
    )


def decoder(
    hidden: int, vocabulary: int, layers: tuple[LayerAnatomy, ...], *, tied: bool, critic: bool
) -> ModelAnatomy:
    """A decoder of an embedding, ``layers``, a norm and a head, named as in archon's modules.

    Args:
        tied: whether a language model's head uses the embedding's weight; a value head never does.
        critic: whether the head gives values.
    """
    tied = tied and not critic
    last = [norm("norm", hidden)]
    if critic:
        last.append(WeightShape("head.weight", (1, hidden), "sequence"))
    elif not tied:
        last.append(WeightShape("head.weight", (vocabulary, hidden), "vocabulary", 0))
    return ModelAnatomy(
        hidden_size=hidden,
        vocab_size=vocabulary,
        embed=(WeightShape("embed.weight", (vocabulary, hidden), "vocabulary", 0),),
        layers=layers,
        last=tuple(last),
        tied=tied,
        critic=critic,
    )
