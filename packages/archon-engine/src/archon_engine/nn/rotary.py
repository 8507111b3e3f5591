"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) with transformers' kinds of scaling, on packed tokens.

Frequencies come from transformers' own functions and are fp32, as there, whatever the type of the model. Angles and
their cosines are computed in at least fp32, and in float64 for float64 activations. Kinds whose frequencies depend on a
sequence's length use the length of each packed sequence, never that of its neighbours.

Legend: T tokens, D head dimension, R rotated elements of a head (D unless rotation is partial), U distinct frequency
sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.packed import PackedSequences
from archon_core.errors import ModelError, did_you_mean
from archon_engine.nn.rotate import rotate

ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")


def _scaling_functions() -> Mapping[str, Any]:
    """The functions of the installed transformers; early releases of version 5 lack ``proportional``."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS


def rotary_reach(max_position_embeddings: int, parameters: Mapping[str, Any]) -> int:
    """Number of positions that a rotation supports: linear scaling and YaRN extend that of the configuration."""
    kind = parameters["rope_type"]
    if kind == "linear":
        return int(max_position_embeddings * parameters.get("factor", 1.0))
    if kind == "yarn":
        original = parameters.get("original_max_position_embeddings") or max_position_embeddings
        return max(max_position_embeddings, int(original * parameters.get("factor", 1.0)))
    return max_position_embeddings


def fixed_frequencies_reach(max_position_embeddings: int, parameters: Mapping[str, Any]) -> int | None:
    """Length up to which frequencies do not depend on a sequence's length; ``None`` when they never do."""
    if parameters["rope_type"] == "dynamic":
        return max_position_embeddings
    if parameters["rope_type"] == "longrope":
        return parameters.get("original_max_position_embeddings") or max_position_embeddings
    return None


@dataclass(frozen=True)
class RopeArguments:
    """The inputs of the computation of frequencies.

    Attributes:
        head_dim: D, even.
        max_position_embeddings: the configuration's value.
        parameters: ``rope_parameters`` of a ``transformers`` configuration: ``rope_type``, ``rope_theta`` and what
            the kind needs, such as ``partial_rotary_factor``, the share of the head that is rotated.
        interleaved: whether neighbouring elements are rotated together, as in GLM-4 and Cohere, instead of element i
            of the first half with element i of the second.
    """

    head_dim: int
    max_position_embeddings: int
    parameters: Mapping[str, Any]
    interleaved: bool = False

    @classmethod
    def from_hf_config(
        cls,
        config: Any,
        head_dim: int,
        *,
        layer_type: str | None = None,
        partial: bool = False,
        interleaved: bool = False,
    ) -> RopeArguments:
        """Read a ``transformers`` configuration.

        Args:
            config: the configuration.
            head_dim: D.
            layer_type: the type whose parameters to read if each type has its own set, as in Gemma 3.
            partial: whether the architecture can rotate a part of the head (``partial_rotary_factor``).
            interleaved: see the attribute.

        Raises:
            ModelError: the kind is not supported, frequencies are set per layer type and ``layer_type`` names none of
                them, the number of rotated elements is odd, or only a part of the head is rotated without ``partial``.
        """
        parameters = dict(config.rope_parameters or {})
        where = f"{config.model_type} configuration: rope_parameters"
        if layer_type is not None and isinstance(parameters.get(layer_type), Mapping):
            parameters, where = dict(parameters[layer_type]), f"{where}[{layer_type!r}]"
        kind = parameters.get("rope_type")
        allowed = [k for k in ROPE_KINDS if k == "default" or k in _scaling_functions()]
        if kind not in allowed:
            nested = any(isinstance(value, Mapping) for value in parameters.values())
            found = "one set per layer type" if nested else f"rope_type {kind!r}{did_you_mean(str(kind), allowed)}"
            raise ModelError(f"{where}: found {found}; allowed is one set with a rope_type of {', '.join(allowed)}")
        if head_dim % 2:
            raise ModelError(f"{where}: found head_dim {head_dim}; rotation needs an even one; correct it")
        factor = parameters.get("partial_rotary_factor")
        if factor not in (None, 1.0) and kind != "proportional" and not partial:
            raise ModelError(
                f"{where}: found partial_rotary_factor {factor} with rope_type {kind!r}; this architecture rotates "
                "the whole head; leave it out, or use rope_type 'proportional'"
            )
        rope = cls(head_dim, config.max_position_embeddings, parameters, interleaved)
        if rope.rotated_dim < 2 or rope.rotated_dim % 2:
            raise ModelError(
                f"{where}: found partial_rotary_factor {factor} with head_dim {head_dim}, which rotates "
                f"{rope.rotated_dim} elements; rotation needs an even number from 2; correct it"
            )
        if kind == "dynamic" and head_dim < 4:
            raise ModelError(
                f"{where}: found rope_type 'dynamic' with head_dim {head_dim}; it needs at least 4; correct it"
            )
        rope.check_frequencies(where)
        return rope

    def check_frequencies(self, where: str) -> None:
        """Raise ``ModelError`` if the parameters give no frequencies, or frequencies that are not finite."""
        try:
            usable = bool(self.frequencies()[0].isfinite().all())
            reason = "they give frequencies that are not finite"
        except Exception as error:  # transformers' functions raise various errors for a text or a null
            usable, reason = False, f"{type(error).__name__}: {error}"
        if not usable:
            raise ModelError(f"{where}: found {dict(self.parameters)} ({reason}); correct the value")

    @property
    def kind(self) -> str:
        """The ``rope_type``."""
        return self.parameters["rope_type"]

    @property
    def rotated_dim(self) -> int:
        """R, the number of elements of a head that are rotated."""
        factor = self.parameters.get("partial_rotary_factor")
        return self.head_dim if factor is None or self.kind == "proportional" else int(self.head_dim * factor)

    @property
    def length_dependent_above(self) -> int | None:
        """Length up to which frequencies do not depend on a sequence's length; ``None`` when they never do."""
        return fixed_frequencies_reach(self.max_position_embeddings, self.parameters)

    @property
    def reach(self) -> int:
        """Number of positions that the rotation supports."""
        return rotary_reach(self.max_position_embeddings, self.parameters)

    def frequencies(self, length: int | None = None) -> tuple[Tensor, float]:
        """Angles per position [R/2], fp32 on the CPU, and the factor for cosines and sines.

        Args:
            length: the sequence's length; ``None`` for sequences up to ``length_dependent_above``.
        """
        with torch.device("cpu"):  # real values even while the model is built on the meta device
            if self.kind == "default":
                exponents = torch.arange(0, self.rotated_dim, 2, dtype=torch.float32) / self.rotated_dim
                return 1.0 / self.parameters["rope_theta"] ** exponents, 1.0
            return _scaling_functions()[self.kind](self._config, torch.device("cpu"), seq_len=length)

    @cached_property
    def _config(self) -> SimpleNamespace:
        """The attributes that ``transformers``' functions read of a configuration."""
        return SimpleNamespace(
            head_dim=self.head_dim,
            hidden_size=self.head_dim,
            num_attention_heads=1,
            max_position_embeddings=self.max_position_embeddings,
            rope_parameters=dict(self.parameters),
            standardize_rope_params=lambda: None,
        )


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of one forward pass, shared by all layers that rotate alike.

    Attributes:
        cos: [T, 1, R], for the first half of a head and again for the second (``rotate``), or [T, 1, R/2] if
            ``interleaved``; ``None`` for layers that do not rotate.
        sin: likewise.
        interleaved: see ``RopeArguments``.
    """

    cos: Tensor | None
    sin: Tensor | None
    interleaved: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """Rotate the first R elements of each head of ``x`` [T, heads, D], in pairs: element i of their first half with
        element i of the second, or neighbours if ``interleaved``."""
        if self.cos is None or self.sin is None:
            return x
        n_rotated = self.cos.shape[-1] * (2 if self.interleaved else 1)
        if n_rotated == x.shape[-1]:
            return self._rotate(x, self.cos, self.sin)
        # Parts by one operation: the backward passes of slices would each write zeros of the size of x.
        part, rest = x.split((n_rotated, x.shape[-1] - n_rotated), dim=-1)
        return torch.cat((self._rotate(part, self.cos, self.sin), rest), dim=-1)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.interleaved:
            first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
        if not torch.compiler.is_compiling():
            return rotate(x, cos, sin)
        # Compiled graphs fuse the plain formula.
        (first, second), (cos, _), (sin, _) = (each.chunk(2, dim=-1) for each in (x, cos, sin))
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class RotaryEmbedding(nn.Module):
    """Computes the rotation of a packed batch. It has no parameters and no buffers.

    Frequencies are a plain CPU tensor: building on the meta device would empty a buffer, and casting the module would
    round it.
    """

    def __init__(self, arguments: RopeArguments) -> None:
        super().__init__()
        self.arguments = arguments
        self._frequencies, self._factor = arguments.frequencies()

    @property
    def length_dependent_above(self) -> int | None:
        """Longest sequence that can be generated token by token; ``None`` for no limit. Above it, every position's
        rotation would depend on the final length, which is not known."""
        return self.arguments.length_dependent_above

    @torch.no_grad()
    def forward(self, packed: PackedSequences, dtype: torch.dtype) -> Rotation:
        """The rotation of every packed token, for activations of ``dtype``.

        Raises:
            ModelError: a cached sequence is longer than ``length_dependent_above``.
        """
        compute_dtype = torch.promote_types(dtype, torch.float32)
        positions = packed.positions.to(compute_dtype)
        angles = positions[:, None] * self._frequencies_of(packed).to(compute_dtype)
        cos, sin = ((x * self._factor).to(dtype)[:, None] for x in (angles.cos(), angles.sin()))
        if not self.arguments.interleaved:
            cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
        return Rotation(cos, sin, self.arguments.interleaved)

    def _frequencies_of(self, packed: PackedSequences) -> Tensor:
        """Frequencies [R/2] for all tokens, or [T, R/2], those of this rank's tokens, when sequences differ."""
        device = packed.positions.device
        limit = self.length_dependent_above
        if limit is not None and packed.cache is not None:
            longest = int(packed.positions.max()) + 1 if packed.positions.numel() else 0
            if longest > limit:
                raise ModelError(
                    f"rope_type {self.arguments.kind!r}: found a cached sequence of {longest} tokens; above {limit} "
                    "every token's rotation depends on the final length, so keys cannot be cached; limit prompt and "
                    f"completion to {limit} tokens together"
                )
        if limit is None or packed.cache is not None or packed.max_seqlen <= limit:
            # Otherwise the host would wait for the previous micro-batch, or decode step, in every forward pass.
            return self._frequencies.to(device, non_blocking=True)
        keys = [length if length > limit else None for length in packed.lengths]
        rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        table_UD = torch.stack(
            [self._frequencies if key is None else self.arguments.frequencies(key)[0] for key in rows]
        )
        row_of_token = torch.repeat_interleave(torch.tensor([rows[key] for key in keys]), torch.tensor(packed.lengths))
        return table_UD[packed.local_rows(row_of_token)].to(device)


class LayerRotaryEmbedding(nn.Module):
    """Computes the rotations of a model whose layers rotate differently or not at all, as in Gemma 3 and SmolLM3.

    Args:
        layers: the arguments of each layer of the whole model; ``None`` for layers that do not rotate.
    """

    def __init__(self, layers: Sequence[RopeArguments | None]) -> None:
        super().__init__()
        # Compared, not hashed: their parameters are mappings.
        different: list[RopeArguments] = []
        for arguments in layers:
            if arguments is not None and arguments not in different:
                different.append(arguments)
        self.embeddings = nn.ModuleList(RotaryEmbedding(arguments) for arguments in different)
        self._embedding_of_layer = tuple(None if a is None else different.index(a) for a in layers)

    def forward(self, packed: PackedSequences, dtype: torch.dtype) -> tuple[Rotation, ...]:
        """The rotation of every layer, for activations of ``dtype``. Raises as ``RotaryEmbedding`` does."""
        rotations = [embedding(packed, dtype) for embedding in self.embeddings]
        return tuple(Rotation(None, None) if i is None else rotations[i] for i in self._embedding_of_layer)
