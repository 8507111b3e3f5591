"""``archon new`` writes plugin packages with passing tests. Imports no torch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from archon_core.cli.console import print_remark, print_text
from archon_core.plugins import ModelSpec, registry
from archon_scaffold.folder import check_free
from archon_scaffold.names import PackageName, check_name

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Name of the package and of its plugin. Python imports demo-llama as demo_llama."
    ),
]
Dir = Annotated[Path, typer.Option("--dir", metavar="D", help="Folder in which to create the package's folder.")]

new = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Write a plugin package with tests: a model, a schedule, a reward or an algorithm.",
)


@new.callback()
def group() -> None:
    """Write a plugin package with tests: a model, a schedule, a reward or an algorithm."""


_MODEL_HELP = "\n\n".join(
    (
        "Write a model package. Install it and its tests pass.",
        "[bold]archon new model my-llama --from-hf path/to/config.json[/bold] reads the architecture from "
        "transformers' own model and writes only what the family needs. If it cannot express a part, it prints the "
        "gap, marks it GAP in the code, and writes a failing test that explains it.",
        "Without --from-hf, the package is a small Llama for you to change.",
    )
)


@new.command(help=_MODEL_HELP)
def model(
    name: Name,
    from_hf: Annotated[
        str | None,
        typer.Option("--from-hf", metavar="CONFIG_OR_DIR", help="config.json, checkpoint folder or hub id to read."),
    ] = None,
    directory: Dir = Path("."),
) -> None:
    package, folder = _prepare(name, "model", directory)
    from archon_scaffold.models.writing import write_model

    written = write_model(package, folder, from_hf)
    print_text(f"{folder}: a model package for model type {written.model_type}")
    others = [spec.name for spec in registry().all(ModelSpec) if written.model_type in spec.model_types]
    if others:
        print_remark(
            f"{', '.join(others)} of installed packages serves model type {written.model_type!r} too; in runs, "
            f"actor.archon.model={package.spec} chooses this one",
            label="note: ",
        )
    for gap in written.gaps:
        print_remark(f"{gap.place}: {gap.text}", label="gap: ")
    if written.gaps:
        print_remark(
            "what is listed above is missing: it is marked GAP in the code, tests fail until it is there, and "
            "PORTING.md says how to go on",
            label="incomplete: ",
        )
    _print_next(folder)


@new.command(
    help="Write a package with a pipeline schedule: a pure function from sizes to each rank's list of actions."
)
def schedule(name: Name, directory: Dir = Path(".")) -> None:
    _write_small("schedule", name, directory)


@new.command(help="Write a package with a reward: a function that scores completions.")
def reward(name: Name, directory: Dir = Path(".")) -> None:
    _write_small("reward", name, directory)


@new.command(help="Write a package with a training algorithm, composed of an advantage estimator and a loss.")
def algorithm(name: Name, directory: Dir = Path(".")) -> None:
    _write_small("algorithm", name, directory)


def _prepare(name: str, kind: str, directory: Path) -> tuple[PackageName, Path]:
    package = check_name(name, kind)
    folder = directory.expanduser() / package.spec
    check_free(folder)
    return package, folder


def _write_small(kind: str, name: str, directory: Path) -> None:
    package, folder = _prepare(name, kind, directory)
    from archon_scaffold.small_packages import write_small

    write_small(kind, package, folder)
    print_text(f"{folder}: a package with the {kind} {package.spec!r}")
    _print_next(folder)


def _print_next(folder: Path) -> None:
    print_text("next:")
    print_text(f"  cd {shlex.quote(str(folder))}")
    print_text('  python -m pip install -e ".[test]"')
    print_text("  pytest")
