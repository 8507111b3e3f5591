"""``archon new``: creates plugin packages with passing tests. Imports no torch."""

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
    typer.Argument(metavar="NAME", help="Name of the package and its plugin: demo-llama is imported as demo_llama."),
]
Dir = Annotated[Path, typer.Option("--dir", metavar="D", help="Folder in which to create the package's folder.")]

new = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Create a plugin package: a model, a schedule, a reward or an algorithm.",
)


@new.callback()
def group() -> None:
    """Create a plugin package: a model, a schedule, a reward or an algorithm."""


_MODEL_HELP = "\n\n".join(
    (
        "Create a model package with passing tests.",
        "[bold]archon new model my-llama --from-hf path/to/config.json[/bold] reads the architecture from the "
        "transformers model of that configuration, and writes only the code that the family needs. A feature that "
        "cannot be expressed is reported, marked GAP in the code, and has a failing test that explains it.",
        "Without --from-hf, creates a small Llama as a starting point.",
    )
)


@new.command(help=_MODEL_HELP)
def model(
    name: Name,
    from_hf: Annotated[
        str | None,
        typer.Option("--from-hf", metavar="CONFIG_OR_DIR", help="A config.json, a checkpoint folder, or a hub id."),
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
            f"the installed model {', '.join(others)} also serves model type {written.model_type!r}; set "
            f"actor.archon.model={package.spec} to choose this one",
            label="note: ",
        )
    for gap in written.gaps:
        print_remark(f"{gap.place}: {gap.text}", label="gap: ")
    if written.gaps:
        print_remark(
            "the features above are missing: they are marked GAP in the code, their tests fail, and PORTING.md "
            "explains how to add them",
            label="incomplete: ",
        )
    _print_next(folder)


@new.command(help="Create a package with a pipeline schedule: a pure function from sizes to the actions of each rank.")
def schedule(name: Name, directory: Dir = Path(".")) -> None:
    _write_small("schedule", name, directory)


@new.command(help="Create a package with a reward: a function that scores completions.")
def reward(name: Name, directory: Dir = Path(".")) -> None:
    _write_small("reward", name, directory)


@new.command(help="Create a package with a training algorithm: an advantage estimator and a loss.")
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
