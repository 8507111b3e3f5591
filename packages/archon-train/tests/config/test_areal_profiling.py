"""AReaL's ``perf_tracer`` and ``memory_profiler`` become options of ``profiler``."""

from collections.abc import Callable

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.errors import ConfigError

Load = Callable[..., LoadedConfig]


@pytest.mark.parametrize(
    ("text", "traces", "snapshots", "decided"),
    [
        ("perf_tracer: {enabled: true, profile_steps: [0, 4]}", [1, 5], [], {"perf_tracer.profile_steps"}),
        ("perf_tracer: {enabled: false, profile_steps: [0, 4]}", [], [], set()),
        ("perf_tracer: {enabled: true, profile_steps: null}", [], [], set()),
        ("perf_tracer: {enabled: true, save_interval: 5}", [], [], {"perf_tracer.save_interval"}),
        ("perf_tracer: {enabled: true, session_tracer: {enabled: true}}", [], [], {"perf_tracer.session_tracer"}),
        ("perf_tracer: {enabled: true, fileroot: /elsewhere}", [], [], {"perf_tracer.fileroot"}),
        ('perf_tracer: {enabled: true, fileroot: "${cluster.fileroot}"}\ncluster: {fileroot: /x}', [], [], set()),
        ("perf_tracer: null\nmemory_profiler: null", [], [], set()),
        ("memory_profiler: {}", [], [1, 2], {"memory_profiler.profile_steps"}),
        ("memory_profiler: {profile_steps: []}", [], [], set()),
        ("memory_profiler: {profile_steps: [1], max_entries: 7}", [], [2], {"memory_profiler.profile_steps"}),
        (
            "perf_tracer: {enabled: true, profile_steps: [0]}\nprofiler: {trace_steps: [9]}",
            [9],
            [],
            {"perf_tracer.profile_steps"},
        ),
    ],
)
def test_the_listed_steps_are_profiled(
    load: Load, text: str, traces: list[int], snapshots: list[int], decided: set[str]
) -> None:
    loaded = load(f"async_training: true\n{text}\n")
    assert (loaded.config.profiler.trace_steps, loaded.config.profiler.memory_steps) == (traces, snapshots)
    assert loaded.config.profiler.memory_entries == (7 if "max_entries" in text else 100_000)
    found = {decision.option for decision in loaded.decisions if decision.option.startswith(("perf", "memory"))}
    assert found - {"perf_tracer.enabled"} == decided
    assert ("perf_tracer.enabled" in found) == ("enabled: true" in text.partition("session_tracer")[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("perf_tracer: {enabled: true, profile_steps: 3}", r"profile_steps: found 3; allowed are lists of steps"),
        ("memory_profiler: {profile_steps: [-1]}", r"profile_steps: found \[-1\]; allowed are lists of steps"),
        ("memory_profiler: {profile_step: [1]}", r"unknown option memory_profiler.profile_step"),
        ("perf_tracer: {nonsense: 1}", r"unknown option perf_tracer.nonsense"),
    ],
)
def test_steps_are_lists_of_numbers_from_0(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text + "\n")
