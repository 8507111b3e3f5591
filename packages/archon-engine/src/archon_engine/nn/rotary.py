"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) with transformers' kinds of scaling, on packed tokens.

Frequencies come from transformers' own functions and are fp32, as there, whatever the type of the model. Angles and
their cosines are computed in at least fp32, and in float64 for float64 activations. Kinds whose frequencies depend on a
sequence's length use the length of each packed sequence, never that of its neighbours.

Legend: T tokens, D head dimension, U distinct frequency sets.
"""

from __future__ import annotations

from collections.abc import Mapping
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
            the kind needs.
    """

    head_dim: int
    max_position_embeddings: int
    parameters: Mapping[str, Any]

    @classmethod
    def from_hf_config(cls, config: Any, head_dim: int) -> RopeArguments:
        """Read a ``transformers`` configuration.

        Raises:
            ModelError: the kind is not supported, frequencies are set per layer type, the head dimension is odd, or
                only a part of the head is rotated.
        """
        parameters = dict(config.rope_parameters or {})
        where = f"{config.model_type} configuration: rope_parameters"
        kind = parameters.get("rope_type")
        allowed = [k for k in ROPE_KINDS if k == "default" or k in _scaling_functions()]
        if kind not in allowed:
            nested = any(isinstance(value, Mapping) for value in parameters.values())
            found = "one set per layer type" if nested else f"rope_type {kind!r}{did_you_mean(str(kind), allowed)}"
            raise ModelError(f"{where}: found {found}; allowed is one set with a rope_type of {', '.join(allowed)}")
        if head_dim % 2:
            raise ModelError(f"{where}: found head_dim {head_dim}; rotation needs an even one; correct it")
        partial = parameters.get("partial_rotary_factor")
        if partial not in (None, 1.0) and kind != "proportional":
            raise ModelError(
                f"{where}: found partial_rotary_factor {partial} with rope_type {kind!r}; this architecture rotates "
                "the whole head; leave it out, or use rope_type 'proportional'"
            )
        if kind == "dynamic" and head_dim < 4:
            raise ModelError(
                f"{where}: found rope_type 'dynamic' with head_dim {head_dim}; it needs at least 4; correct it"
            )
        rope = cls(head_dim, config.max_position_embeddings, parameters)
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
    def length_dependent_above(self) -> int | None:
        """Length up to which frequencies do not depend on a sequence's length; ``None`` when they never do."""
        return fixed_frequencies_reach(self.max_position_embeddings, self.parameters)

    @property
    def reach(self) -> int:
        """Number of positions that the rotation supports."""
        return rotary_reach(self.max_position_embeddings, self.parameters)

    def frequencies(self, length: int | None = None) -> tuple[Tensor, float]:
        """Angles per position [D/2], fp32 on the CPU, and the factor for cosines and sines.

        Args:
            length: the sequence's length; ``None`` for sequences up to ``length_dependent_above``.
        """
        with torch.device("cpu"):  # real values even while the model is built on the meta device
            if self.kind == "default":
                exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
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
    """Cosines and sines of one forward pass, shared by all layers.

    Attributes:
        cos: [T, 1, D/2].
        sin: [T, 1, D/2].
    """

    cos: Tensor
    sin: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Rotate ``x`` [T, heads, D]: element i of the first half together with element i of the second."""
        if not torch.compiler.is_compiling():
            return rotate(x, self.cos, self.sin)
        # Compiled graphs fuse the plain formula.
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * self.cos - second * self.sin, second * self.cos + first * self.sin), dim=-1)


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
        cos, sin = angles.cos() * self._factor, angles.sin() * self._factor
        return Rotation(cos.to(dtype)[:, None], sin.to(dtype)[:, None])

    def _frequencies_of(self, packed: PackedSequences) -> Tensor:
        """Frequencies [D/2] for all tokens, or [T, D/2], those of this rank's tokens, when sequences differ."""
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
            return self._frequencies.to(device)
        keys = [length if length > limit else None for length in packed.lengths]
        rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        table_UD = torch.stack(
            [self._frequencies if key is None else self.arguments.frequencies(key)[0] for key in rows]
        )
        row_of_token = torch.repeat_interleave(torch.tensor([rows[key] for key in keys]), torch.tensor(packed.lengths))
        return table_UD[packed.local_rows(row_of_token)].to(device)
