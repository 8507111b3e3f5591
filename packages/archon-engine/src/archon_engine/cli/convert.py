"""``archon convert`` converts checkpoints between Hugging Face folders and training states."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from archon_core.cli.console import print_remark


class Format(StrEnum):
    """The formats that a checkpoint can be written in."""

    HF = "hf"
    DCP = "dcp"


class StoredType(StrEnum):
    """The types that weights can be stored in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="For hf: a run folder (its last checkpoint), a checkpoint, or a dcp folder. For dcp: a Hugging Face "
            "folder with safetensors files.",
            show_default=False,
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="New or empty folder.", show_default=False)],
    to: Annotated[
        Format,
        typer.Option(
            "--to",
            help="hf: weights, configuration and tokenizer for transformers, vLLM and SGLang. dcp: weights as a "
            "training state at step zero, without optimizer state.",
            show_default=False,
        ),
    ],
    dtype: Annotated[
        StoredType | None,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            help=f"Type to store: {', '.join(StoredType)}. Default: the source's.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", help="Folder or hub id with the model's config.json, for a training state without one."
        ),
    ] = None,
    run_as: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="For dcp: model spec to use, such as hf; by default the spec that serves the model type.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert a checkpoint: a training state to a Hugging Face folder, or back. Needs one process, no GPU, and memory
    for one tensor."""
    # No device is used here, so transformers' warnings about missing devices would only confuse.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from archon_engine.checkpoint.conversion import convert_to_dcp, convert_to_hf

    stored = None if dtype is None else dtype.value
    if to is Format.HF:
        if run_as is not None:
            raise typer.BadParameter(
                "found a model for --to hf; a training state names its model; leave it out", param_hint="--model"
            )
        read = convert_to_hf(source, destination, config=config, dtype=stored)
    else:
        if config is not None:
            raise typer.BadParameter(
                "found a folder for --to dcp; a Hugging Face folder contains its config.json; leave it out",
                param_hint="--config",
            )
        for decision in convert_to_dcp(source, destination, dtype=stored, run_as=run_as):
            print_remark(f"{source}: {decision.effective}: {decision.reason}")
        read = source
    print_remark(f"{read} -> {destination} ({to.value})", label="converted: ", style="bold")
