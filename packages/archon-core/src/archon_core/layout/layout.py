"""``Layout``: a parsed layout, with the engine and the given sizes.

``Layout.parallel_dims`` resolves sizes that depend on the model, such as the expert tensor size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from archon_core.layout.axes import RANK_LETTERS, AxisSizes
from archon_core.layout.backends import Backend, Kind
from archon_core.layout.diagnostics import Fault, Span, alternatives, layout_error
from archon_core.layout.dims import ParallelDims

Part = Literal["attn", "ffn"]


@dataclass(frozen=True)
class Layout:
    """An engine and its sizes, from ``parse_layout``.

    Equality compares the text: ``archon:d2`` and ``archon:d2t1`` differ. Compare ``parallel_dims`` for equal meaning.

    Attributes:
        engine: the backend as the grammar knows it.
        dims: the sizes of a flat layout, or those of the ``attn`` part of a hybrid one.
        ffn: the sizes of the ``ffn`` part; ``None`` for a flat layout.
    """

    engine: Backend
    dims: AxisSizes = field(default_factory=AxisSizes)
    ffn: AxisSizes | None = None

    def __str__(self) -> str:
        if self.ffn is not None:
            return f"{self.backend}:(attn:{self.dims}|ffn:{self.ffn})"
        return f"{self.backend}:{self.dims}" if self.dims else self.backend

    @property
    def backend(self) -> str:
        """The engine's name."""
        return self.engine.name

    @property
    def kind(self) -> Kind:
        """Whether the engine trains or generates."""
        return self.engine.kind

    @property
    def on_trainer_ranks(self) -> bool:
        """Whether this is an inference engine on the trainer's ranks, such as ``local``."""
        return self.kind == "inference" and not self.engine.letters

    @property
    def world_size(self) -> int:
        """Ranks that the engine needs; 0 if it runs on the trainer's ranks."""
        return 0 if self.on_trainer_ranks else self.dims.product(RANK_LETTERS)

    @property
    def servers(self) -> int:
        """Number of inference servers; 0 if the engine runs on the trainer's ranks."""
        assert self.kind == "inference", f"{self} trains: it has ranks, not servers"
        return 0 if self.on_trainer_ranks else self.dims["d"]

    @property
    def devices_per_server(self) -> int:
        """Devices per inference server; 0 if the engine runs on the trainer's ranks."""
        return self.world_size // self.servers if self.servers else 0

    @property
    def sharding_size(self) -> int:
        """Ranks of one pipeline stage and replica, which the expert sizes must divide."""
        return self.dims.product("dct")

    @property
    def ep(self) -> int:
        """Expert parallel size."""
        return (self.dims if self.ffn is None else self.ffn)["e"]

    @property
    def etp(self) -> int | None:
        """Expert tensor parallel size; ``None`` if automatic, as in every flat layout."""
        return None if self.ffn is None else self.ffn["t"]

    def parallel_dims(self, *, moe: bool, option: str = "layout") -> ParallelDims:
        """Resolve the sizes for a model with (``moe``) or without experts.

        The automatic expert tensor size is 1 if e > 1, and t otherwise. A model without experts has etp=1. ``option``
        is the option with the layout, for messages.

        Raises:
            LayoutError: the layout has expert sizes, but the model has no experts.
        """
        assert self.kind == "train", f"{self} generates: it has servers, not parallel dims"
        if not moe:
            self._refuse_experts(option)
            etp = 1
        elif self.etp is not None:
            etp = self.etp
        else:
            etp = 1 if self.ep > 1 else self.dims["t"]
        return ParallelDims(
            pp=self.dims["p"],
            dp_replicate=self.dims["r"],
            dp_shard=self.dims["d"],
            cp=self.dims["c"],
            tp=self.dims["t"],
            ep=self.ep,
            etp=etp,
        )

    def part_span(self, part: Part = "attn") -> Span:
        """Columns of a part's sizes in ``str(self)``; a flat layout has only ``attn``."""
        start = len(f"{self.backend}:")
        if self.ffn is None:
            return start, start + len(str(self.dims))
        start += len("(attn:")
        if part == "attn":
            return start, start + len(str(self.dims))
        start += len(f"{self.dims}|ffn:")
        return start, start + len(str(self.ffn))

    def span(self, letter: str, part: Part = "attn") -> Span:
        """Columns of a letter with its size in ``str(self)``; of the whole part if the letter is missing."""
        start, _ = self.part_span(part)
        sizes = self.ffn if part == "ffn" and self.ffn is not None else self.dims
        for written, size in sizes:
            width = len(f"{written}{size}")
            if written == letter:
                return start, start + width
            start += width
        return self.part_span(part)

    def _refuse_experts(self, option: str) -> None:
        # A hybrid layout whose ffn part repeats the dense sizes asks a dense model for nothing special.
        splits_experts = self.etp not in (None, 1, self.dims["t"])
        if self.ep == 1 and not splits_experts:
            return
        letter, size, name = ("e", self.ep, "expert") if self.ep > 1 else ("t", self.etp, "expert tensor")
        flat = Layout(self.engine, self.dims.without("e"))
        fault = Fault(
            spans=(self.span(letter, "attn" if self.ffn is None else "ffn"),),
            found=f"{name} parallelism ({letter}{size}) for a model that has no experts",
            allowed="sizes that spread or split experts only with a mixture-of-experts model",
        )
        suggestion = alternatives([(str(flat), flat.world_size)])
        raise layout_error(str(self), fault, fix=f"{suggestion}, or train a mixture-of-experts model", option=option)
