"""Answers a request of ``archon plan``: prints text or JSON, writes the page, and returns the exit code."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from archon_core.cli.console import print_json, print_remark, print_table
from archon_core.errors import USER_ERROR, ConfigError
from archon_core.plugins import registry
from archon_plan.alternatives import find_alternatives
from archon_plan.answer import Answer, Refused, find_answer
from archon_plan.answer_data import answer_data, refused_data
from archon_plan.devices import Device, write_device
from archon_plan.models import find_model, read_anatomy
from archon_plan.page import Found, write_page
from archon_plan.planned_run import PlannedRun, plan_run
from archon_plan.request import LENGTH, RunRequest
from archon_plan.rl_report import rl_data
from archon_plan.rl_request import Measured
from archon_plan.search_report import found_table, print_search, search_data
from archon_plan.search_request import find_layouts, request_candidate
from archon_plan.text_report import print_answer, print_refused, print_shortfall

DOES_NOT_FIT = 1
"""Exit code of a plan whose memory does not suffice."""

CALIBRATION_TOKENS = 8192
"""Tokens of a micro-batch on one rank in measurements of a model's sizes."""


@dataclass(frozen=True)
class Output:
    """Where an answer goes.

    Attributes:
        as_json: print JSON instead of text.
        page: file of the page; ``None`` for none.
    """

    as_json: bool = False
    page: Path | None = None


def answer_request(request: RunRequest, device: Device, measured: Measured, output: Output) -> int:
    """Print the answer; returns the exit code."""
    found = find_answer(request, device, registry())
    if isinstance(found, Refused):
        if output.as_json:
            print_json(refused_data(found))
        print_refused(found)
        return USER_ERROR
    run = plan_run(found, registry(), measured)
    others = None if found.fits else find_alternatives(found, found.fullest, registry())
    if output.as_json:
        data = {**answer_data(found), "run": None if run.plan is None else rl_data(run.plan, run.splits)}
        alternatives = None if others is None else asdict(others)
        print_json({**data, "alternatives": alternatives, "run_problem": run.problem})
    else:
        print_answer(found, run)
    if output.page is not None:
        _write_page(output.page, found, run)
    if others is not None:
        print_shortfall(found, others)
    if run.problem:
        print_remark(run.problem, label="does not fit: ", style="bold red")
    return 0 if found.fits and not run.problem else DOES_NOT_FIT


def answer_search(request: RunRequest, device: Device, output: Output, *, world: int) -> int:
    """Print the best layouts; returns the exit code. The page shows the first of them in detail."""
    found = find_layouts(request, device, registry(), world=world)
    if isinstance(found, Refused):
        if output.as_json:
            print_json(refused_data(found))
        print_refused(found)
        return USER_ERROR
    if output.as_json:
        print_json(search_data(found, request))
    else:
        print_search(found, request)
    if not found.result.candidates:
        return DOES_NOT_FIT
    if output.page is not None:
        best = replace(request, engines=(request_candidate(found, found.result.candidates[0]),))
        answer = find_answer(best, device, registry())
        assert isinstance(answer, Answer), "a layout that a search finds violates no constraint"
        _write_page(output.page, answer, PlannedRun(), found_table(found))
    return 0


def answer_calibration(path: Path, output: Output, *, model: str | None = None, device_type: str | None = None) -> int:
    """Measure this machine's device, write the device file, and print its figures; returns the exit code.

    Args:
        path: the device file.
        output: text or JSON.
        model: whose sizes of products and attention to measure; ``None`` for a usual model.
        device_type: ``cuda`` or ``cpu``; ``None`` for a GPU if there is one.

    Raises:
        ConfigError: the file is no YAML file, or cannot be written; or there is no such device.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--calibrate: found {str(path)!r}; allowed is a file that ends in .yaml; rename it")
    from archon_plan.calibrate import Sizes, calibrate  # imports torch

    sizes = None
    if model is not None:
        found = find_model(model)
        anatomy = read_anatomy(registry().model_for(found.model_type), found.entries)
        sizes = Sizes.of(anatomy, tokens=CALIBRATION_TOKENS, sequence=LENGTH)
    measured = calibrate(sizes, device_type=device_type, name=path.stem)
    try:
        write_device(measured, path)
    except OSError as error:
        raise ConfigError(
            f"--calibrate: found {str(path)!r}, which cannot be written ({error.strerror}); allowed is a file in an "
            "existing, writable folder; choose another path"
        ) from error
    if output.as_json:
        print_json({name: {"value": value, "source": source} for name, value, source in measured.rows()})
    else:
        print_table(
            ("figure", "value", "source"), [(name, _figure(value), source) for name, value, source in measured.rows()]
        )
    print_remark(f"{path}; use it with --device {path}", label="wrote ", style="bold")
    return 0


def _figure(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_page(path: Path, answer: Answer, run: PlannedRun, found: Found | None = None) -> None:
    """Raises ConfigError: the file cannot be written."""
    try:
        write_page(path, answer, rl=run.plan, splits=run.splits, sampling=run.memory, found=found, notes=run.notes)
    except OSError as error:
        raise ConfigError(
            f"--html: found {str(path)!r}, which cannot be written ({error.strerror}); allowed is a file in an "
            "existing, writable folder; choose another path"
        ) from error
    print_remark(str(path), label="wrote ", style="bold")
