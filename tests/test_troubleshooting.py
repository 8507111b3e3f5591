"""docs/troubleshooting.md: each row is provoked here, and what is printed is the message that the page shows."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import pickle
import re
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from archon_core import assemble
from archon_core.cli.main import main
from archon_core.cluster.joining import wait_for_ranks
from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest, RolloutConfig, ScoredModel
from archon_core.layout import parse_layout
from archon_core.layout.model_sizes import ShardedExtents, check_sizes
from archon_core.plugins import build_registry, registry
from archon_core.plugins.discovery import discover, distribution_name
from archon_core.plugins.reward_choice import choose_reward
from archon_core.ranks.environment import RankEnvironment
from archon_core.ranks.first_failure import RankExit, explain
from archon_core.ranks.network_interface import use_interface
from archon_core.serving.arena import ArenaHeader
from archon_core.serving.arena_file import create_arena
from archon_core.serving.record import ServerRecord, ServerState
from archon_core.serving.run_token import read_token
from archon_core.serving.scores import ServedModelInfo
from archon_engine.checkpoint.dcp_metadata import read_metadata
from archon_engine.checkpoint.hf import open_checkpoint
from archon_engine.checkpoint.seal import (
    check_file,
    read_seal,
    seal_whole,
    write_seal,
)
from archon_engine.data.packing import plan_micro_batches
from archon_engine.distributed.determinism import ensure_deterministic
from archon_engine.nn.attention import check_attention_backend
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.context_style import ContextSizes, split_context
from archon_engine.parallel.compilation import check_compiler
from archon_etcd.registry import EtcdRegistry
from archon_ray.groups import Bundle, Group, Node, explain_no_room
from archon_ray.machine import Place
from archon_ray.places import check_places
from archon_rl.datasets.jsonl import read_jsonl
from archon_rl.fields import Fields, with_location
from archon_rl.rewards.calls import Outcome, RewardCall
from archon_rl.rewards.checking import NamedReward, checked_reward
from archon_rl.rewards.gsm8k import gsm8k_reward
from archon_rl.rewards.pool import RewardPool
from archon_rl.rewards.source import RewardSource
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import bpe_tokenizer, characters_tokenizer
from archon_rl.trainer.loop import TrainingLoop
from archon_rl.trainer.rollout_batch import Rollout
from archon_rl.trainer.scoring import Scorer
from archon_rl.trainer.teacher import compare_tokenizers
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.pool import Pool
from archon_rollout.publication.canary import canary_problem
from archon_rollout.registries.announcer import entry_id
from archon_rollout.registries.folder import FolderRegistry
from archon_rollout.registries.memory import MemoryRegistry
from archon_rollout.served.driver import ServedDriver
from archon_rollout.served.frozen_driver import FrozenDriver
from archon_slurm.client import check_programs
from archon_slurm.script import fill_template
from archon_train.cluster import cluster_shares
from archon_train.experiment import load_config
from archon_train.launch.world import check_started, explain_machines
from archon_train.run.folder import RunFolder
from archon_train.run.lock import sole_writer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
ROW = re.compile(r"^### (.+?)\n\n(.+?)\n\n```text\n(.+?)\n```\n\n(.+?)(?=\n\n#|\Z)", re.MULTILINE | re.DOTALL)
ROWS = {match[1]: match for match in ROW.finditer(PAGE)}

EXAMPLE = ROOT / "examples/grpo_arithmetic.yaml"
TINY = {"model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}

DRY_RUNS: dict[str, list[str]] = {
    "A layout has a letter that the engine lacks": ["actor.backend=fsdp:d1p2"],
    "Experts do not fit the ranks": ["actor.backend=archon:d1p2e2"],
    "No package provides the engine": ["actor.backend=megatron:d2"],
    "The layout has expert ranks and the model has no experts": ["actor.backend=archon:d2e2"],
    "The engines need more ranks than the cluster has": ["actor.backend=archon:d16", "cluster.n_gpus_per_node=8"],
    "Critic or reference has another number of ranks": ["ref.backend=archon:d1", "actor.kl_ctl=0.1"],
    "The program of the servers is missing": ["actor.backend=archon:d1", "rollout.backend=vllm:d1"],
    "Servers do not have the weight transport": ["rollout.backend=sglang:d1", "rollout.weight_transport=shm"],
    "A teacher has no servers": ["teacher.path=./large-model"],
    "The number of micro-batches was raised": ["actor.backend=archon:p2"],
    "A zero-bubble schedule and compiled blocks": [
        "actor.backend=archon:p2",
        "actor.archon.pp_schedule=ZBV",
        "actor.archon.enable_compile=true",
    ],
    "No package serves the model": ["actor.model_config.model_type=mamba"],
    "An option is not known": ["actor.optimzer.lr=1e-4"],
    "A value has the wrong type": ["actor.mb_spec.n_mbs=many"],
    "None is written where null is meant": ["actor.model_config.sliding_window=None"],
    "A memory budget without a compiler": ["actor.gradient_checkpointing=true", "actor.archon.ac_mode=memory_budget"],
    "strict refuses a decision": ["actor.archon.strict=true", "actor.archon.ac_mode=full"],
    "Routing replay without a recording": ["actor.archon.moe_routing_replay=true"],
    "There is no model to train": ["actor.model_config=null"],
    "The model's folder does not exist": ["actor.model_config=null", "actor.path=./missing/model"],
    "The data file does not exist": ["data.dataset=jsonl", "data.path=./missing/problems.jsonl"],
}
"""Row -> overrides of examples/grpo_arithmetic.yaml whose dry run prints the row's message."""

Provocation = Callable[..., str | None]
PROVOCATIONS: dict[str, Provocation] = {}


def row(heading: str) -> Callable[[Provocation], Provocation]:
    """Register the function that provokes the row's message: it raises, prints or returns what users see."""

    def register(function: Provocation) -> Provocation:
        PROVOCATIONS[heading] = function
        return function

    return register


def test_every_row_has_a_test_and_every_test_a_row() -> None:
    headings = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert headings == list(ROWS), "each row has symptom, cause, message and fix"
    assert sorted(headings) == sorted([*DRY_RUNS, *PROVOCATIONS])


@pytest.mark.parametrize("heading", list(ROWS))
def test_what_the_page_says_is_printed(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if heading in DRY_RUNS:
        run_archon("train", str(EXAMPLE), *DRY_RUNS[heading], "--dry-run")
        printed = ""
    else:
        try:
            printed = PROVOCATIONS[heading](tmp_path) or ""
        except Exception as error:  # the errors of every package, as the command line shows them
            printed = str(error)
    output = capsys.readouterr()
    text = ROWS[heading][3]
    assert matches(text, printed + output.out + output.err), f"{printed}{output.out}{output.err}"


def matches(text: str, printed: str) -> bool:
    """Whether a message is among what was printed; ``...`` stands for anything, line breaks and boxes do not count."""
    pattern = re.escape(plain(text)).replace(re.escape("..."), ".*?")
    return re.search(pattern, plain(printed), re.DOTALL) is not None


def plain(text: str) -> str:
    return " ".join(re.sub(r"[│┃─━]", " ", text).split())


def run_archon(*arguments: str) -> None:
    """Run a command in this process; its exit code is not of interest."""
    with pytest.raises(SystemExit):
        main(list(arguments))


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    """Plugins that a row registers, and the process group that an engine makes, are gone after the row."""
    had_group = dist.is_initialized()
    registry.cache_clear()
    yield
    registry.cache_clear()
    if dist.is_initialized() and not had_group:
        dist.destroy_process_group()


def registry_without(package: str):
    found = discover()
    kept = tuple(point for point in found.entry_points if distribution_name(point) != package)
    return build_registry(dataclasses.replace(found, entry_points=kept), {})


def registry_with(folder: Path, distribution: str, source: str, *, name: str | None = None):
    """What is installed and a made-up plugin, as a folder on the path holds it; ``name`` is written to its metadata."""
    module = distribution.replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    written = distribution if name is None else name
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {written}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[archon]\n{distribution} = {module}\n")
    (folder / f"{module}.py").write_text(f"from archon_core.plugins import *\n{source}\n")
    sys.path.insert(0, str(folder))
    try:
        return build_registry(discover(), {})
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(module, None)


PLANS: dict[str, list[str]] = {
    "A plan does not fit the device": ["--model=qwen3-30b-a3b", "--layout=archon:d2t2"],
    "The servers of a plan have no room for a sequence": [
        str(ROOT / "examples/archon_qwen3_8b.yaml"),
        "rollout.backend=sglang:d8t1",
        "--set=memory=16e9",
    ],
    "A plan's lengths are impossible": [str(ROOT / "examples/archon_qwen3_8b.yaml"), "--completion-tokens=3000"],
    "A plan does not know the device": ["--model=qwen3-8b", "--layout=archon:d2", "--device=h1000"],
    "A plan does not know the model": ["--model=qwen4-8b", "--layout=archon:d2"],
    "A planned layout violates constraints": ["--model=qwen3-8b", "--layout=archon:d2t3e2"],
}
for heading, arguments in PLANS.items():
    row(heading)(lambda folder, arguments=arguments: run_archon("plan", *arguments))


@row("The teacher has another vocabulary")
def _(folder: Path) -> None:
    characters_tokenizer(["bcd"]).save_pretrained(folder)
    compare_tokenizers(str(folder), characters_tokenizer(["abc"]))


@row("A teacher's server has another model")
def _(folder: Path) -> None:
    class Driver:
        def describe_model(self, server: ServerRecord, *, timeout: float) -> ServedModelInfo:
            return ServedModelInfo("./other", 0, vocab_size=64, fingerprint="other")

        def state(self, server: ServerRecord, *, timeout: float) -> ServerState:
            return ServerState(server.incarnation, 0, paused=False)

    (folder / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    model = ScoredModel(str(folder), vocab_size=64, max_tokens=1)
    driver = FrozenDriver(Driver(), model, option="teacher.rollout", timeout=1)
    driver.admit(ServerRecord("127.0.0.1:8000", "start", "served"), started_here=False)


@row("The layout needs several machines")
def _(folder: Path) -> str | None:
    cluster = load_config(EXAMPLE, ["cluster.n_nodes=2", "cluster.n_gpus_per_node=8"]).config.cluster
    return explain_machines(cluster_shares({"actor": parse_layout("archon:d16")}), cluster, ["train", "run.yaml"])


@row("The Ray cluster has no room")
def _(folder: Path) -> str:
    group = Group("trainer", (Bundle(8, 8), Bundle(8, 8)), "STRICT_SPREAD")
    return explain_no_room(group, [Node("id", "n1", "10.0.0.1", {"CPU": 8.0, "GPU": 2.0})], {"CPU": 3.0}, 600, "GPU")


@row("A machine of the Ray cluster does not see the run folder")
def _(folder: Path) -> None:
    check_places([Place("n2", "10.0.0.2", "id", {}, ["/runs/e/trial0/ray"])])


@row("This machine has no SLURM")
def _(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder))
        check_programs()


@row("A job script starts nothing")
def _(folder: Path) -> None:
    fill_template("{{directives}}", {"directives": "", "command": ""}, source="job.sh")


@row("The launcher started a wrong number of processes")
def _(folder: Path) -> None:
    place = RankEnvironment(rank=0, world_size=2, local_rank=0, local_world_size=2)
    check_started(place, cluster_shares({"actor": parse_layout("archon:d4")}), ["train", "run.yaml"])


@row("Tensor ranks do not divide the model")
def _(folder: Path) -> None:
    extents = ShardedExtents({"attention heads": 12, "layers.{layer}.mlp.down_proj inputs": 3072})
    check_sizes(extents, parse_layout("archon:t8"), option="actor.backend")


@row("Context ranks cannot divide the heads")
def _(folder: Path) -> None:
    split_context("ulysses", ContextSizes(context=8, query_heads=4), option="actor.archon.cp_style")


@row("A vocabulary has too few rows for the tensor ranks")
def _(folder: Path) -> None:
    extents = ShardedExtents({"attention heads": 12}, unequal={"embed outputs": 9, "head outputs": 9})
    check_sizes(extents, parse_layout("archon:t4"), option="actor.backend")


@row("A schedule, model or algorithm is in a package that is not installed")
def _(folder: Path) -> None:
    registry_without("archon-pipeline").get("schedule", "ZBV")


@row("An option belongs to a package that is not installed")
def _(folder: Path) -> None:
    load_config(EXAMPLE, ["actor.archon.moe_aux_loss=sequence"], registry_without("archon-moe"))


@row("A plugin does not import")
def _(folder: Path) -> None:
    registry_with(folder, "my-rewards", "import a_module_that_is_missing").get("reward", "shorter")


@row("A plugin was written for another plugin API")
def _(folder: Path) -> None:
    registry_with(folder, "my-rewards", 'ARCHON_PLUGIN_API = "1.7"').get("reward", "shorter")


@row("A plugin's package has no name")
def _(folder: Path) -> None:
    registry_with(folder, "my-rewards", "import a_module_that_is_missing", name="").get("reward", "shorter")


@row("Two packages provide the same name")
def _(folder: Path) -> None:
    source = """
ARCHON_PLUGIN_API = "1.0"
@hookimpl
def archon_rewards():
    return [RewardSpec(name="gsm8k", target="my_rewards:reward")]
"""
    registry_with(folder, "my-rewards", source).get("reward", "gsm8k")


@row("An option has both AReaL's name and Archon's")
def _(folder: Path) -> None:
    text = {"train_dataset": {"path": "a.jsonl"}, "data": {"path": "b.jsonl"}}
    (folder / "run.yaml").write_text(yaml.safe_dump(text))
    load_config(folder / "run.yaml")


@row("The model or the data set has images")
def _(folder: Path) -> None:
    (folder / "run.yaml").write_text("total_train_epochs: 1\nactor: {path: Qwen/Qwen2.5-VL-3B-Instruct}\n")
    load_config(folder / "run.yaml")


@row("The file describes no run")
def _(folder: Path) -> None:
    (folder / "run.yaml").write_text("env_vars: {}\n")
    load_config(folder / "run.yaml")


@row("An AReaL option needs a missing feature")
def _(folder: Path) -> None:
    text = {"train_dataset": {"path": "a.jsonl"}, "actor": {"optimizer": {"offload": True}}}
    (folder / "run.yaml").write_text(yaml.safe_dump(text))
    load_config(folder / "run.yaml")


@row("An entry of config.json is not known")
def _(folder: Path) -> None:
    _engine({**TINY, "attention_sinks": 4}).initialize()


@row("The list of end tokens is broken")
def _(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(TINY))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 151645]}')
    run_archon("train", str(EXAMPLE), "actor.model_config=null", f"actor.path={folder}", "--dry-run")


@row("A boolean in model_config is a text")
def _(folder: Path) -> None:
    _engine({**TINY, "tie_word_embeddings": "off"}).initialize()


@row("An attention kernel does not run on this device")
def _(folder: Path) -> None:
    check_attention_backend("varlen", "cpu", torch.float32, 64)


@row("Compiling for a CPU needs a compiler")
def _(folder: Path) -> None:
    check_compiler("cpu", option="actor.archon.enable_compile", environment={"CXX": "no-such-compiler"})


@row("Deterministic mode comes too late")
def _(folder: Path) -> None:
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    ensure_deterministic(option="actor.archon.use_deterministic_algorithms")


@row("Too few servers are left")
def _(folder: Path) -> None:
    servers = MemoryRegistry()
    servers.announce("a", ServerRecord("10.0.0.4:8000", "a", "served"), ttl=60)
    options = RolloutConfig(setup_timeout=0.1)
    pool = Pool(servers, ServedDriver(options), options)
    asyncio.run(pool.refresh())
    pool.receivers()
    reason = canary_problem(Completion((5,), (-1.2,), (0,), "length"), [-3.4], version=0, tolerance=1e-3)
    pool.committed(0, {"a": f"canary: {reason}"})
    pool.wait_for_receivers()


@row("No server answered a request")
def _(folder: Path) -> None:
    options = RolloutConfig(request_timeout=0.1)
    driver = ServedDriver(options)
    client = PoolClient(Pool(MemoryRegistry(), driver, options), driver, options)
    asyncio.run(client.generate(GenerationRequest((1,), GenerationConfig(), (0,))))


@row("Shared memory is full")
def _(folder: Path) -> None:
    create_arena(ArenaHeader.for_buckets(2**56), run="run", folder=folder)


@row("The folder of the server registry is gone")
def _(folder: Path) -> None:
    servers = FolderRegistry(folder / "servers")
    servers.announce("a", ServerRecord("10.0.0.4:8000", "a", "served"), ttl=60)
    servers.list()
    (folder / "servers").rename(folder / "away")
    servers.list()


@row("The run folder holds a run")
def _(folder: Path) -> None:
    run = RunFolder.open("runs", "arithmetic", "grpo")
    run.metrics.write_text("{}\n")
    RunFolder.open("runs", "arithmetic", "grpo")


@row("Another process writes to the run folder")
def _(folder: Path) -> None:
    with sole_writer(folder), sole_writer(folder):
        pass


@row("There is nothing to resume")
def _(folder: Path) -> None:
    run_archon("train", str(EXAMPLE), "actor.backend=archon:d1", "--resume")


@row("A checkpoint is damaged")
def _(folder: Path) -> None:
    file = Path("weights.bin")
    file.write_bytes(bytes(64))
    write_seal(Path(), {file.name: seal_whole(file)})
    file.write_bytes(bytes(63) + b"\1")
    check_file(file, read_seal(Path())[file.name])


@row("A checkpoint folder holds two sets of weights")
def _(folder: Path) -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name in ("model.safetensors", *shards):
        save_file({"a": torch.zeros(1)}, folder / name)
    weight_map = dict(zip("ab", shards, strict=True))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    open_checkpoint(folder)


@row("A training state names code")
def _(folder: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return print, ("run",)

    (folder / ".metadata").write_bytes(pickle.dumps(Attack()))
    read_metadata(folder / ".metadata")


@row("A checkpoint's tensors are not the model's")
def _(folder: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(64, 16)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TINY))
    _engine(None, path=str(folder)).initialize()


@row("Data, tokenizer or reward changed before a run was resumed")
def _(folder: Path) -> None:
    records = [json.dumps({"question": f"{n}+1=", "answer": str(n + 1)}) + "\n" for n in range(8)]
    (folder / "data.jsonl").write_text("".join(records))
    options = ["data.dataset=jsonl", f"data.path={folder / 'data.jsonl'}", "data.validation_size=0", "algorithm=sft"]
    options += ["data.batch_size=4", "trainer.verify_export=false", "warm_start=null", "reward=null", "rollout={}"]
    options += ["actor.backend=archon:d1"]
    run_archon("train", str(EXAMPLE), "trainer.max_steps=2", *options)
    (folder / "data.jsonl").write_text("".join(reversed(records)))
    run_archon("train", str(EXAMPLE), "trainer.max_steps=3", *options, "--resume")


@row("A rank was killed")
def _(folder: Path) -> str:
    return explain(RankExit(1, 4711, -signal.SIGKILL, 0.0, log=Path("runs/e/t/logs/start-1/rank-1.log")), 4)


@row("The machine of the first rank cannot be reached")
def _(folder: Path) -> None:
    use_interface(RankEnvironment(1, 2, 0, 1), {"MASTER_ADDR": "no-such-host.invalid"}, patience=0.0)


@row("Ranks do not arrive")
def _(folder: Path) -> None:
    wait_for_ranks(dist.HashStore(), RankEnvironment(0, 3, 0, 1), timeout=0.1)


@row("A sequence is longer than a micro-batch")
def _(folder: Path) -> None:
    plan_micro_batches([4096, 200], n_mbs=1, max_tokens_per_mb=2048, option="actor.mb_spec")


@row("A token id is outside the vocabulary")
def _(folder: Path) -> None:
    engine = _engine(TINY)
    engine.initialize()
    engine.forward_batch(Batch.from_sequences([[1, 200]]), OutputRequest())


@row("Records have other fields")
def _(folder: Path) -> None:
    with with_location("problems.jsonl:1"):
        Fields("question", "answer").check({"problem": "1+1=", "solution": "2"})


def _second_line(content: bytes) -> None:
    Path("train.jsonl").write_bytes(b'{"question": "a", "answer": "1"}\n' + content)
    read_jsonl(Path("train.jsonl"), Fields("question", "answer"))


@row("A field holds no text")
def _(folder: Path) -> None:
    _second_line(b'{"question": "a", "answer": null}')


@row("A data file is not UTF-8")
def _(folder: Path) -> None:
    _second_line(b'{"question": "caf\xe9", "answer": "1"}')


@row("A data file has an unpaired surrogate")
def _(folder: Path) -> None:
    _second_line(rb'{"question": "q\ud83d", "answer": "1"}')


@row("A record has a name twice")
def _(folder: Path) -> None:
    _second_line(b'{"question": "a", "answer": "1", "answer": "2"}')


@row("Records are too long for the run")
def _(folder: Path) -> None:
    Path("train.jsonl").write_text(
        "\n".join(json.dumps({"question": "1" * n, "answer": "1"}) for n in (3, 29)), encoding="utf-8"
    )
    options = ["data.dataset=jsonl", "data.path=train.jsonl", "data.batch_size=1", "data.validation_size=0"]
    options += ["tokenizer.kind=characters", "gconfig.max_new_tokens=12", f"cluster.fileroot={folder}"]
    options += ["actor.model_config.max_position_embeddings=32", "actor.backend=archon:d1", "warm_start.steps=0"]
    run_archon("train", str(EXAMPLE), *options)


def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    tokenizer = bpe_tokenizer(["a"], 260)
    tokenizer.chat_template = template
    return tokenizer


@row("A chat template fails")
def _(folder: Path) -> None:
    tokenizer = _tokenizer("{{ raise_exception('a system message must come first') }}")
    TextEncoder(tokenizer, "question", "answer").encode_prompt({"question": "2+3?", "answer": "5"})


@row("A chat template rewrites the assistant's earlier turns")
def _(folder: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<think>' if loop.last and m.role == 'assistant' }}{{ m.content }}{% endfor %}"
    )
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    TextEncoder(_tokenizer(template), "messages", None).encode_examples([{"messages": turns}])


@row("Updates are skipped")
def _(folder: Path) -> None:
    class Progress:
        def note(self, text: str) -> None:
            raise RuntimeError(text)

    config = load_config(EXAMPLE).config
    loop = SimpleNamespace(run=SimpleNamespace(config=config, progress=Progress()), total_steps=130, beside={})
    TrainingLoop._finish_step(loop, 7, {"skipped_updates": 1.0, "updates": 2.0})


@row("A reward is not a finite number")
def _(folder: Path) -> None:
    _score(lambda prompt, completion, record: float("nan"))


@row("A reward function raises an exception")
def _(folder: Path) -> None:
    (folder / "my_rewards.py").write_text(
        "\n\n\n\n\ndef mine(prompt, completion, record):\n    raise TimeoutError('sandbox did not answer')\n"
    )
    _score(runpy.run_path(str(folder / "my_rewards.py"))["mine"])


@row("A reward gives no answer in time")
def _(folder: Path) -> str:
    (folder / "my_rewards.py").write_text("import time\ndef mine(prompt, completion, record):\n    time.sleep(1000)\n")
    pool = RewardPool(RewardSource("mine", "my_rewards:mine", folder=str(folder)), processes=1, timeout=0.5)
    try:
        [outcome] = pool.score([RewardCall("2+3=", "it is 5", {"answer": "5"}, "problems.jsonl:3")])
    finally:
        pool.close()
    return outcome.error


@row("No completion of a step has a reward")
def _(folder: Path) -> None:
    error = (
        "problems.jsonl:3: reward 'mine': it raised TimeoutError: sandbox did not answer (my_rewards.py:7 in mine); "
        "correct the function"
    )
    _judge([Outcome(error=error, cause="TimeoutError")])


@row("Too many completions have no reward")
def _(folder: Path) -> None:
    _judge([Outcome(error="problems.jsonl:3: reward 'mine': it returned nan", cause="invalid value"), Outcome(1.0)])


@row("The module of a reward is not found")
def _(folder: Path) -> None:
    choose_reward("my_reward:score", registry())


@row("A function cannot be a reward")
def _(folder: Path) -> None:
    (folder / "my_rewards.py").write_text("def score(completion): ...\n")
    choose_reward("my_rewards:score", registry())


@row("The package behind a reward or data set is not installed")
def _(folder: Path) -> None:
    packages = {name: sys.modules.pop(name, None) for name in ("math_verify", "archon_tasks.mathematics")}
    sys.modules["math_verify"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        importlib.import_module("archon_tasks.mathematics")
    finally:
        sys.modules.update({name: module for name, module in packages.items() if module is not None})
        if packages["math_verify"] is None:
            del sys.modules["math_verify"]


@row("An answer of the data has no number")
def _(folder: Path) -> None:
    reward = NamedReward("gsm8k", gsm8k_reward)
    checked_reward(reward, "How many?", "7", {"answer": "many"}, place="problems.jsonl:3")


def _score(function: Callable[..., float]) -> None:
    checked_reward(NamedReward("mine", function), "2+3=", "it is 5", {"answer": "5"}, place="problems.jsonl:3")


def _judge(outcomes: list[Outcome]) -> None:
    """What a step says to the outcomes of one prompt."""
    completion = Completion((1,), (0.0,), (0,), "stop")
    rollout = Rollout(({"answer": "5"},), ((1,),), ((completion,) * len(outcomes),))
    runner = SimpleNamespace(score=lambda calls: outcomes)
    encoder = SimpleNamespace(answer_key=None, prompt=lambda record: "", decode=lambda ids: "")
    Scorer(runner, encoder, 0.0, note=lambda text: None)(rollout, when="Step 7")


def _engine(model_config: dict | None, *, path: str | None = None):
    return assemble(ArchonEngineConfig(model_config=model_config, path=path, optimizer=None))


@row("A server cannot announce itself")
def _(folder: Path) -> None:
    (folder / "servers").mkdir()
    (folder / "servers" / "announced").touch()
    record = ServerRecord("127.0.0.1:8000", "5f0c", "served")
    FolderRegistry(folder / "servers" / "announced").announce(entry_id(record), record, 15)


@row("etcd does not answer")
def _(folder: Path) -> None:
    EtcdRegistry("127.0.0.1:1", "e/t").list()


@row("Other users can read the servers' token")
def _(folder: Path) -> None:
    (folder / "servers").mkdir()
    (folder / "servers" / "token").touch(0o644)
    read_token(folder / "servers")
