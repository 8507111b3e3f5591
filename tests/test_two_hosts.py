"""Training over two hosts, with a server on the second: ranks and weights cross the network between them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archon_core.run_files.trajectories import Line, read_step, steps_in
from archon_testing.worlds import run_world
from archon_train.run.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).parent))

from test_training_over_ranks import COMMON, GRPO, POLICY, TOLERANCE
from trained_runs import train
from two_hosts import Host, explain_missing, two_hosts

pytestmark = pytest.mark.wide

DEADLINE = 180.0
"""Seconds after which the test gives up; nothing is asserted about how much sooner something happens."""

COMPARED = ("loss", "gradient_norm", "reward", "rollout_kl_ref")

SHORT = (
    "trainer.max_steps=2",
    "trainer.save_every=0",
    "trainer.verify_export=false",
    "rollout.dump_to_file=true",
)
SERVED = (
    "rollout.backend=served:d1",
    "rollout.start_servers=false",
    "rollout.weight_transport=distributed",
    "cluster.n_nodes=2",
    "cluster.n_gpus_per_node=2",
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    if missing := explain_missing():
        pytest.skip(missing)
    with two_hosts() as made:
        yield made


@pytest.fixture
def alone(tmp_path):
    """The file of a run, and the folder of that run in one process, which samples itself."""
    text = COMMON.replace("POLICY", POLICY).replace("SCHEDULE", "cosine") + GRPO
    file = tmp_path / "run.yaml"
    file.write_text(f"{text}cluster: {{fileroot: {tmp_path}}}\n", encoding="utf-8")
    run_world(train, 1, (file, "d1", "alone", SHORT), time_limit=120)
    return file, tmp_path / "layouts" / "alone"


def archon(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "archon_core.cli", *arguments)


def start_ranks(hosts, output: Path, *arguments: str) -> list[subprocess.Popen[bytes]]:
    """One rank per host, with the environment that torchrun would give it."""
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": hosts[0].name, "MASTER_PORT": "29500"}
    return [
        host.start(*archon(*arguments), environment={**place, "RANK": str(rank)}, output=output.with_suffix(f".{rank}"))
        for rank, host in enumerate(hosts)
    ]


def wait_for(ranks, output: Path, *others: subprocess.Popen[bytes]) -> list[str]:
    """The outputs of ranks that end well."""
    end = time.monotonic() + DEADLINE
    outputs = [output.with_suffix(f".{rank}") for rank in range(len(ranks))]
    try:
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
            if any(one.poll() for one in (*ranks, *others)):
                break
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in outputs]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(texts)
    return texts


def sampled(run: Path) -> list[Line]:
    """The trajectories of all steps."""
    return [line for _, file in sorted(steps_in(run).items()) for line in read_step(file)]


def test_two_hosts_train_on_a_server_of_one_with_the_numbers_of_one_process(hosts, alone, tmp_path):
    file, expected = alone
    second = hosts[1]
    log = tmp_path / "server.log"
    given = ("trial_name=two", *SHORT, *SERVED)
    [export] = expected.glob("export*")
    server = second.start(
        *archon("serve", "--model", str(export / "config.json"), "--host", "0.0.0.0", "--dtype", "float64"),
        *("--announce", str(file), *given),
        output=log,
    )
    try:
        ranks = start_ranks(hosts, tmp_path / "rank", "train", str(file), "actor.backend=archon:d2", *given)
        wait_for(ranks, tmp_path / "rank", server)
        assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    except BaseException:
        print(log.read_text(encoding="utf-8", errors="replace"))
        raise
    finally:
        server.kill()
        server.wait()

    found = expected.with_name("two")
    weights, others = (load_file(next(folder.glob("export*")) / "model.safetensors") for folder in (found, expected))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=TOLERANCE * float(others[name].abs().max()))
    steps, steps_alone = (
        [{name: row[name] for name in COMPARED} for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
        for folder in (found, expected)
    )
    assert len(steps) == 2
    assert steps == [pytest.approx(row, rel=TOLERANCE, abs=TOLERANCE) for row in steps_alone]
    assert all(row["gradient_norm"] > 1e-3 for row in steps)

    ours, theirs = sampled(found), sampled(expected)
    assert [line.token_ids for line in ours] == [line.token_ids for line in theirs]
    logprobs = [[line.logprobs for line in lines] for lines in (ours, theirs)]
    assert logprobs[0] == [pytest.approx(line, rel=TOLERANCE, abs=TOLERANCE) for line in logprobs[1]]
    assert min(min(line) for line in logprobs[1]) < -0.01, "tokens are drawn, not certain"

    text = log.read_text(encoding="utf-8")
    assert f"ready: http://{second.address}:" in text, "it announces the address of the cable"
    # Before the first step and after each; a step updates the weights once per mini-batch, of two.
    assert re.findall(r"weights: version (-?\d+) -> (\d+)", text) == [("-1", "0"), ("0", "2"), ("2", "4")]
    decisions = json.loads((found / "decisions.json").read_text(encoding="utf-8"))
    [interface] = [row for row in decisions if row["option"] == "GLOO_SOCKET_IFNAME"]
    assert (interface["requested"], interface["effective"]) == ("not set", hosts[0].interface)


def test_the_doctor_compares_two_hosts(hosts, tmp_path):
    given = ("doctor", "--cluster", "--json", "--folder", str(tmp_path / "shared"), "--timeout", "60")
    first, second = wait_for(start_ranks(hosts, tmp_path / "rank", *given), tmp_path / "rank")
    report = json.loads(first[first.index("{\n") :])  # torch warns before it that it finds no name for an address
    assert "{" not in second, "only the first rank prints"
    assert [rank["interface"] for rank in report["ranks"]] == [host.interface for host in hosts]
    assert [(link["axis"], link["ranks"]) for link in report["links"]] == [("dp_shard", [0, 1])]
    assert {finding["state"] for finding in report["findings"]} == {"ok"}
