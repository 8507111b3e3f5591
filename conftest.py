"""For the tests of all packages: no deadlines per example, the slowest files first, and whole runs as forks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from archon_testing.fork_server import ForkServer, starting_by_forks

# Read when torch is imported, by the workers of pytest-xdist too. Threads of several workers that wait for one another
# on few cores burn more time than they save: the suite takes twice as long with them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("archon", deadline=None)
settings.load_profile("archon")

SLOWEST = (
    "tests/test_scaffold.py",
    "tests/test_verify.py",
    "tests/test_qwen3_moe_suite.py",
    "tests/test_pipeline.py",
    "tests/test_your_own_model.py",
    "tests/test_engine_options.py",
    "tests/test_training_over_ranks.py",
    "tests/test_experts_engine.py",
    "tests/test_uneven_shards.py",
    "tests/test_storm.py",
    "tests/test_async_storm.py",
    "tests/test_lora_layouts.py",
    "tests/test_lora_files.py",
    "tests/test_served.py",
    "tests/test_teacher_servers.py",
    "tests/test_verify_finds_bugs.py",
    "tests/test_verify_finds_moe_bugs.py",
    "tests/test_routing_replay.py",
    "tests/test_verify_finds_hidden_bugs.py",
    "tests/test_gpu_check.py",
    "packages/archon-rollout/tests/test_local_engine.py",
    "tests/test_micro_batching_changes_no_number.py",
    "tests/test_collector_over_layouts.py",
    "tests/test_agent_runs.py",
    "packages/archon-train/tests/launch/test_runs.py",
    "tests/test_examples_run.py",
    "tests/test_local_engine_qwen.py",
    "packages/archon-train/tests/launch/test_restarts.py",
    "tests/test_troubleshooting.py",
    "packages/archon-train/tests/launch/test_failures.py",
    "packages/archon-models-qwen/tests/test_model_plugin_suite.py",
    "tests/test_engine_over_ranks.py",
    "tests/test_hf_verify.py",
    "tests/test_end_tokens.py",
    "tests/test_verify_interrupted.py",
    "tests/test_sampling_ahead.py",
    "tests/test_readme.py",
    "tests/test_restarts.py",
    "tests/test_hf_engines.py",
    "tests/plan/test_traffic.py",
    "tests/test_config_fuzz.py",
    "tests/test_qwen3_moe.py",
    "tests/test_weights_over_ranks.py",
    "tests/test_checkpoint_kills.py",
    "packages/archon-models-qwen/tests/test_parity.py",
    "tests/test_gpt_oss_suite.py",
    "packages/archon-testing/tests/test_worlds.py",
    "tests/test_tied_head_only.py",
    "packages/archon-models-hf/tests/test_model_plugin_suite.py",
    "packages/archon-pipeline/tests/test_schedules.py",
    "tests/test_checkpoints_over_ranks.py",
    "packages/archon-rl/tests/test_rl_trainer.py",
    "tests/test_long_sequences.py",
)
"""Files of half a minute and more in either suite, the longest first. A worker takes whole files (``--dist loadfile``),
so a long file that begins last would leave the other worker idle. From ``pytest --durations=0``; a missing file costs
only time."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {config.rootpath / file: place for place, file in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(Path(item.path), len(SLOWEST)))  # a stable sort: files keep their own order


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Starts programs of Archon, and their ranks, collectors and servers, in a process that has imported everything."""
    server = ForkServer(forked=False, nested=True)
    yield server
    server.close()


@pytest.fixture
def by_forks(forks: ForkServer) -> Iterator[None]:
    """What the test's own process starts are forks: ranks of ``archon train``, collectors and servers."""
    with starting_by_forks(forks):
        yield
