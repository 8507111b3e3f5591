"""Checks before a run that drivers of foreign programs, such as vLLM and SGLang, share."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

from archon_core.layout import Layout


def missing_program(module: str, python: str, *, install: str, option: str) -> str:
    """Why the program of the servers cannot be started, with how to get it; empty if it can.

    Args:
        module: the program's module, which is also the name of its driver's section.
        python: the interpreter of the environment that has it; empty for this one.
        install: the commands that install it.
        option: section of the servers.
    """
    advice = f"{install}; or set {option}.addresses to running servers"
    if python:
        return "" if shutil.which(python) else f"is not at {module}.python={python}: {advice}"
    if importlib.util.find_spec(module) is None:
        return f"is not in this environment, and usually needs one apart from the trainer's: {advice}"
    return ""


def score_temperature_problems(program: str, sampling: Any, layout: Layout, option: str) -> Iterator[str]:
    """The problem of a program that scores at temperature 1 only, if the run samples at another one.

    Args:
        program: its name, for messages.
        sampling: the section ``gconfig``.
        layout: of the servers.
        option: section of the servers.
    """
    if not sampling.greedy and sampling.temperature != 1:
        yield (
            f"gconfig.temperature: found {sampling.temperature:g} with {option}.backend={layout}; {program} scores at "
            f"temperature 1 only; set it to 1, or use {option}.backend=served"
        )
