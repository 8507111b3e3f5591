"""AReaL's sections ``perf_tracer`` and ``memory_profiler``, which become options of ``profiler``.

AReaL counts training steps from 0 and lists the steps to profile. Its tracer also writes the times of phases of every
step, which are metrics here, and those of single rollouts, which Archon does not trace.
"""

from __future__ import annotations

from collections.abc import Iterator

from archon_core.config.raw import RawList, RawMapping, RawNode, RawScalar, follow, merge, nested, shown
from archon_core.config.typed import Problem
from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_train.areal.facts import facts
from archon_train.areal.raw_options import text_of, with_text
from archon_train.areal.rules import FILES, PHASES, SESSIONS
from archon_train.profile_plan import ENTRIES, SNAPSHOTS, TRACES

TRACER, MEMORY = "perf_tracer", "memory_profiler"


def translate_profiling(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    """``tree`` with the options of ``profiler``.

    Raises:
        ConfigError: steps that are not a list of numbers from 0.
    """
    if isinstance(tree.get(TRACER), RawMapping) and text_of(tree, f"{TRACER}.enabled") == "true":
        if (steps := _steps(tree, f"{TRACER}.profile_steps")) is not None:
            tree = _take(tree, f"{TRACER}.profile_steps", steps, TRACES, decisions)
        decisions.extend(_without_effect(tree))
    section = follow(tree, MEMORY)[1]
    if isinstance(section, RawMapping):
        option = f"{MEMORY}.profile_steps"
        steps = _steps(tree, option) if section.get("profile_steps") is not None else RawList(_DEFAULT_STEPS, MEMORY)
        if steps is not None and steps.items:
            tree = _take(tree, option, steps, SNAPSHOTS, decisions)
            entries = text_of(tree, f"{MEMORY}.max_entries")
            if entries and tree.get(ENTRIES) is None:
                tree = with_text(tree, ENTRIES, entries, section.source)
    return tree


_DEFAULT_STEPS = (RawScalar("0", plain=True, source=MEMORY), RawScalar("1", plain=True, source=MEMORY))


def _take(tree: RawMapping, option: str, steps: RawList, target: str, decisions: list[Decision]) -> RawMapping:
    if not steps.items:
        return tree
    if tree.get(target) is not None:
        decisions.append(Decision(option, shown(steps), "no effect", f"{target} is given"))
        return tree
    counted = [int(step.text) + 1 for step in steps.items if isinstance(step, RawScalar)]
    decisions.append(Decision(option, shown(steps), f"{target}={counted}", "steps count from 1"))
    items = tuple(RawScalar(str(step), plain=True, source=steps.source) for step in counted)
    return merge(tree, nested(target, RawList(items, steps.source)))


def _steps(tree: RawMapping, option: str) -> RawList | None:
    """The list of steps; ``None`` for null."""
    _, node = follow(tree, option)
    if node is None or (isinstance(node, RawScalar) and node.is_null):
        return None
    if isinstance(node, RawList) and all(_is_step(item) for item in node.items):
        return node
    text = f"{option}: found {shown(node)}; allowed are lists of steps, counted from 0; correct it, or leave it out"
    raise ConfigError(str(Problem(node.source, text)))


def _is_step(node: RawNode) -> bool:
    return isinstance(node, RawScalar) and node.text.isascii() and node.text.isdigit()


def _without_effect(tree: RawMapping) -> Iterator[Decision]:
    """Decisions about the options of an enabled tracer that trace more, or otherwise, than ``profiler`` does."""
    yield Decision(f"{TRACER}.enabled", "true", "metrics", PHASES)
    option = f"{TRACER}.save_interval"
    interval = follow(tree, option)[1]
    if interval is not None and not facts(option)[0].is_default(interval):
        yield Decision(option, shown(interval), "no effect", FILES)
    if text_of(tree, f"{TRACER}.session_tracer.enabled") == "true":
        yield Decision(f"{TRACER}.session_tracer", "enabled", "no effect", SESSIONS)
