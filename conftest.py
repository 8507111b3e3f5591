"""For the tests of all packages: no deadlines per example, the slowest files first, and whole runs as forks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from archon_testing import running_world
from archon_testing.fork_server import ForkServer, starting_by_forks
from archon_testing.shared_fork_server import ADDRESS, SharedForkServer

# Read when torch is imported, by the workers of pytest-xdist too. Threads of several workers that wait for one another
# on few cores burn more time than they save: the suite takes twice as long with them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ranks of tests also import their test file, and train and sample whole runs.
running_world.PRELOADED = (
    *running_world.PRELOADED,
    "pytest",
    "archon_rl.trainer.sampling_ahead",
    "archon_rollout.local_engine",
    "archon_train.experiment",
)

# Every run draws other examples; `hatch run test-soak` draws ten times as many where a test names no number.
settings.register_profile("archon", deadline=None, max_examples=40)
settings.register_profile("soak", deadline=None, max_examples=400)
settings.load_profile("archon")

SLOWEST = (
    "tests/test_scaffold.py",
    "tests/test_verify.py",
    "tests/test_engine_options.py",
    "tests/test_training_over_ranks.py",
    "tests/test_your_own_model.py",
    "tests/test_uneven_shards.py",
    "tests/test_separated_roles.py",
    "tests/test_served.py",
    "tests/test_experts_engine.py",
    "tests/test_async_storm.py",
    "tests/test_hf_families.py",
    "tests/test_verify_finds_bugs.py",
    "tests/test_teacher_servers.py",
    "tests/test_storm.py",
    "tests/test_examples_run.py",
    "tests/test_qwen3_moe_suite.py",
    "tests/test_engine_over_ranks.py",
    "tests/test_hf_engines.py",
    "tests/test_verify_finds_moe_bugs.py",
    "tests/test_verify_finds_hidden_bugs.py",
    "tests/test_gpu_check.py",
    "tests/test_tools_in_runs.py",
    "tests/test_pipeline.py",
    "tests/test_lora_layouts.py",
    "tests/test_lora_files.py",
    "tests/plan/test_traffic.py",
    "packages/archon-models-qwen/tests/test_model_plugin_suite.py",
    "tests/test_restarts.py",
    "tests/test_preferences_over_layouts.py",
    "tests/test_agent_runs.py",
    "tests/test_collector_over_layouts.py",
    "tests/plan/test_activations_tracked.py",
    "packages/archon-rollout/tests/publication/test_faults.py",
    "tests/test_losses_over_layouts.py",
    "tests/test_separated_failures.py",
    "tests/test_server_backends.py",
    "tests/test_micro_batching_changes_no_number.py",
    "tests/test_weights_over_ranks.py",
    "packages/archon-train/tests/launch/test_runs.py",
    "tests/test_discovered_servers.py",
    "tests/test_workflows_in_runs.py",
    "packages/archon-train/tests/launch/test_failures.py",
    "tests/test_two_hosts.py",
    "tests/test_own_rewards_in_runs.py",
    "tests/test_sampling_ahead.py",
    "tests/test_checkpoint_kills.py",
    "tests/test_lora_runs.py",
    "tests/test_preference_examples.py",
    "tests/test_served_faults.py",
    "tests/test_older_transformers.py",
    "tests/test_checkpoints_over_ranks.py",
    "tests/test_gpt_oss_suite.py",
    "tests/test_glm4_moe_suite.py",
    "tests/test_deepseek_v3_suite.py",
    "tests/test_config_fuzz.py",
    "packages/archon-testing/tests/test_worlds.py",
    "tests/test_docs_examples.py",
    "packages/archon-rollout/tests/publication/test_broadcasting.py",
    "tests/test_routing_replay.py",
    "tests/test_hf_verify.py",
    "tests/test_areal_files.py",
    "packages/archon-models-hf/tests/test_model_plugin_suite.py",
    "packages/archon-slurm/tests/test_agents.py",
    "tests/test_model_plugin_suite.py",
    "packages/archon-rl/tests/test_losses_over_splits.py",
    "tests/test_verify_interrupted.py",
    "packages/archon-core/tests/cluster/test_cluster_doctor.py",
    "packages/archon-train/tests/launch/test_restarts.py",
    "packages/archon-moe/tests/test_expert_parallel.py",
    "packages/archon-pipeline/tests/test_schedules.py",
    "packages/archon-rl/tests/test_many_ranks.py",
    "tests/test_troubleshooting.py",
    "packages/archon-rl/tests/test_rl_trainer.py",
    "tests/wheels/test_scaffolded_packages.py",
    "tests/wheels/test_outside_packages.py",
    "tests/wheels/test_all_together.py",
    "tests/wheels/test_core_and_models_qwen.py",
    "tests/wheels/test_release.py",
)
"""Files that take ten seconds and more in one of the suites, the longest first. A worker takes whole files (``--dist
loadfile``), so a long file that begins last would leave the others idle. From ``pytest --durations=0``; a missing file
costs only time."""


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")  # of pytest-xdist; workers and ranks inherit the address
    if sys.platform == "linux" and not is_worker:
        server = SharedForkServer()
        os.environ[ADDRESS] = server.address
        config.add_cleanup(server.close)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of wide runs, leave out files without a wide test: each worker would import them for many seconds."""
    if config.getoption("markexpr") != "wide" or collection_path.suffix != ".py":
        return None
    return "wide" not in collection_path.read_text(encoding="utf-8").lower() or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {config.rootpath / file: place for place, file in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(Path(item.path), len(SLOWEST)))  # a stable sort: files keep their own order


@pytest.fixture(scope="session")
def fork_server_address() -> str:
    """For ``ForkServer(address=...)``, of a process that has imported everything."""
    if ADDRESS not in os.environ:
        pytest.skip("programs are started as forks on Linux only")
    return os.environ[ADDRESS]


@pytest.fixture(scope="session")
def forks(fork_server_address: str) -> Iterator[ForkServer]:
    """Starts programs of Archon, and their ranks, collectors and servers, in a process that has imported everything."""
    server = ForkServer(address=fork_server_address, nested=True)
    yield server
    server.close()


@pytest.fixture
def by_forks(forks: ForkServer) -> Iterator[None]:
    """What the test's own process starts are forks: ranks of ``archon train``, collectors and servers."""
    with starting_by_forks(forks):
        yield
