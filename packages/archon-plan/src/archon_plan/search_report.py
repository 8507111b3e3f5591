"""Shows the result of a search: as text, as JSON data, and as a table of the page."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from rich.text import Text

from archon_core.cli.console import print_table, print_text
from archon_core.config.rules import written_value
from archon_engine.options.combinations import asked_value
from archon_plan.engine_flags import as_flags
from archon_plan.numbers import count, gib, percent, seconds
from archon_plan.page import Found
from archon_plan.request import LENGTH, RunRequest
from archon_plan.search import Candidate
from archon_plan.search_request import SearchAnswer, options_of

HEAD = ("layout", "schedule", "ac_mode", "micro-batches", "step", "tokens/s", "MFU", "memory", "limited by")


def print_search(answer: SearchAnswer, run: RunRequest) -> None:
    """Print the best layouts, and the command that plans the first of them."""
    print_text(Text(_title(answer), "bold"))
    print_text(_space(answer))
    candidates = answer.result.candidates
    if candidates:
        print_text("")
        print_table(HEAD, [_row(candidate) for candidate in candidates])
    print_text("")
    print_text(_least(answer))
    if candidates:
        print_text(f"\nto plan the first: {command_of(answer, candidates[0], run)}")


def found_table(answer: SearchAnswer) -> Found:
    """The result as a table of the page."""
    rows = [_row(candidate) for candidate in answer.result.candidates]
    return Found(_title(answer), HEAD, rows, f"{_space(answer)}. {_least(answer)}.")


def _title(answer: SearchAnswer) -> str:
    model = answer.request.model.name
    return f"the best layouts of {model} on {answer.world:,} x {answer.sought.device.name}"


def _space(answer: SearchAnswer) -> str:
    result, sought = answer.result, answer.sought
    sequences = answer.request.sequences
    apart = ", shared prompts counted with each" if sequences.shares_prompts else ""
    return (
        f"{sought.sequences:,} sequences of {sequences.length:,} tokens per step{apart}; "
        f"{result.layouts:,} valid layouts, of which {result.too_large:,} are too large"
    )


def _least(answer: SearchAnswer) -> str:
    if answer.least is None:
        return "no layout fits on so many devices, nor on 16 times as many"
    return f"the least number of devices on which a layout fits: {answer.least:,}"


def _row(candidate: Candidate) -> tuple[str, ...]:
    setting, time = candidate.setting, candidate.time
    tokens = setting.tokens
    return (
        candidate.layout,
        setting.schedule.name if setting.schedule else "",
        setting.checkpointing,
        f"{tokens.n_micro_batches} x {tokens.per_micro_batch:,}",
        seconds(time.total),
        count(candidate.tokens_per_second),
        percent(time.mfu),
        gib(max(memory.total for memory in candidate.memory)),
        time.limit,
    )


def command_of(answer: SearchAnswer, candidate: Candidate, run: RunRequest) -> str:
    """The command that plans a candidate in detail, without the options of the device."""
    request, options = answer.request, options_of(answer.request, candidate.setting)
    role = request.role
    if run.config is not None:
        settings = {"backend": candidate.layout, "gradient_checkpointing": "true", **options}
        overrides = [*run.overrides, *(f"{role}.{name}={value}" for name, value in settings.items())]
        return shlex.join(["archon", "plan", run.title, *overrides])
    written = sorted(name.removeprefix(f"{role}.") for name in request.explicit)
    kept = {name: written_value(asked_value(request.config, name)) for name in written if name not in options}
    words = ["archon", "plan", "--model", request.model.name, "--layout", candidate.layout]
    words += ["--role", role] if role != "actor" else []
    words += ["--critic"] if request.config.is_critic and role not in ("critic", "reward_model") else []
    words += as_flags({**kept, **options})
    words += ["--seq", str(request.sequences.length)] if request.sequences.length != LENGTH else []
    return shlex.join([*words, "--sequences", str(answer.sought.sequences)])


def search_data(answer: SearchAnswer, run: RunRequest) -> dict[str, Any]:
    """The result as JSON data."""
    return {
        "title": run.title,
        "world": answer.world,
        "device": answer.sought.device.name,
        "sequences": answer.sought.sequences,
        "sequence_tokens": answer.request.sequences.length,
        "layouts": answer.result.layouts,
        "too_large": answer.result.too_large,
        "least_devices": answer.least,
        "candidates": [
            {
                "layout": candidate.layout,
                "schedule": candidate.setting.schedule.name if candidate.setting.schedule else None,
                "ac_mode": candidate.setting.checkpointing,
                "tokens_per_micro_batch": candidate.setting.tokens.per_micro_batch,
                "n_micro_batches": candidate.setting.tokens.n_micro_batches,
                "tokens_per_second": candidate.tokens_per_second,
                "memory_bytes": max(memory.total for memory in candidate.memory),
                "time": asdict(candidate.time),
                "command": command_of(answer, candidate, run),
            }
            for candidate in answer.result.candidates
        ],
    }
