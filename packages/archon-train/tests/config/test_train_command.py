"""``archon train`` with a trainer that does nothing but what the test asks."""

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from archon_core.cli.main import main
from archon_core.plugins import (
    AlgorithmSpec,
    DatasetSpec,
    InferenceEngineSpec,
    LauncherSpec,
    ModelSpec,
    PluginStatus,
    Registry,
    TrainEngineSpec,
)

from .conftest import plugin

TRAINER_SOURCE = """
import logging
import os
import signal
from pathlib import Path

from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine import StepRecording
from archon_core.contracts.preview import EnginePreview
from archon_core.errors import TrainingError
from archon_core.ranks.first_failure import RankExit

RUNS = []


class Trainer:
    def __init__(self, run, algorithm):
        self.run = run
        assert algorithm == "the algorithm"

    def fit(self):
        run = self.run
        RUNS.append(run)
        run.decisions.append(Decision("actor.dtype", "default", "float32", "the engine says so"))
        what = run.config.reward
        if what in ("checkpoint", "checkpoint-then-stop"):
            with run.folder.writing(3) as folder:
                (folder / "weights").write_text("w")
        if what in ("stop", "checkpoint-then-stop"):
            os.kill(os.getpid(), signal.SIGINT)
            assert run.stop.requested
        if what.startswith("terminate"):
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "terminate-by-exception":
            raise KeyboardInterrupt("stopped after step 4")
        if what == "interrupt-twice":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        if what == "report":
            run.recordings.take([StepRecording("ac_debug-rank0.txt", "layers.0: kept all", is_log=True)])
            run.recordings.take([StepRecording("pipeline-actor.json", text) for text in ("{}", "[]")])
            logging.getLogger("archon_core.elsewhere").info("nothing of it")
        if what == "fail":
            raise TrainingError("step 2: found no gold; dig elsewhere")


algorithm = "the algorithm"


def preview(outline):
    option = f"{outline.role}.dtype"
    problem = f"{option}: found a type; this engine has one of its own; leave it out"
    return EnginePreview((problem,) if option in outline.explicit else ())


class launch:
    def __init__(self, launch):
        RUNS.append(launch)

    def run(self, *, resume):
        RUNS.append(resume)
        code = {"stop": 143, "fail": 7}.get(RUNS[0].config.reward, 0)
        return [RankExit(0, 11, 0, 1.0), RankExit(1, 12, code, 2.0, host="n2", log=Path("rank-1.log"))]

    def close(self):
        RUNS.append("closed")
"""

MODULE = "archon_fake_trainer"


@pytest.fixture
def trainer(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> object:
    """The module of the fake trainer."""
    import importlib

    folder = tmp_path_factory.mktemp("trainer")
    (folder / f"{MODULE}.py").write_text(TRAINER_SOURCE)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop(MODULE, None)
    return importlib.import_module(MODULE)


@pytest.fixture
def train(
    trainer: object,
    make_registry: Callable[..., Registry],
    write: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., int]:
    """Run the command on a small configuration; returns the exit code."""
    from archon_core.plugins import RewardSpec

    names = ("nothing", "checkpoint", "stop", "checkpoint-then-stop", "interrupt-twice", "fail")
    names += ("terminate", "terminate-by-exception", "report")
    provided: PluginStatus = plugin(
        "fake",
        AlgorithmSpec(
            name="fake", target=f"{MODULE}:algorithm", trainer=f"{MODULE}:Trainer", needs=("inference_engine",)
        ),
        InferenceEngineSpec(name="local", target="json:loads", letters=""),
        AlgorithmSpec(name="other", target=f"{MODULE}:algorithm", trainer=f"{MODULE}:Trainer"),
        DatasetSpec(name="jsonl", target="json:loads"),
        ModelSpec(name="tiny", target="json:loads", model_types=("tiny",)),
        LauncherSpec(name="elsewhere", target=f"{MODULE}:launch"),
        TrainEngineSpec(name="plain", target="json:loads", letters="d", hybrid=False, preview=f"{MODULE}:preview"),
        *(RewardSpec(name=name, target="json:loads") for name in names),
    )
    registry = make_registry(provided)
    for module in ("train", "training"):
        monkeypatch.setattr(f"archon_train.cli.{module}.registry", lambda: registry)
    monkeypatch.setattr("archon_core.plugins.registry", lambda: registry)
    config = write(
        f"""
        experiment_name: e
        algorithm: fake
        reward: nothing
        actor: {{model_config: {{model_type: tiny}}, archon: {{enable_compile: false}}}}
        cluster: {{fileroot: '{tmp_path}/runs'}}
        """
    )

    def train(*arguments: str) -> int:
        with pytest.raises(SystemExit) as exit:
            main(["train", str(config), *arguments])
        assert isinstance(exit.value.code, int)
        return exit.value.code

    return train


Train = Callable[..., int]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "runs/e/trial0"


def test_a_run_writes_its_resolved_configuration_and_all_decisions(
    train: Train, trainer: object, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("seed=5", "data.batch_size=3") == 0
    (run,) = trainer.RUNS  # type: ignore[attr-defined]
    assert run.config.seed == 5
    assert {"seed", "data.batch_size", "actor.archon.enable_compile"} <= run.explicit
    assert "seed: 5\n" in (run_folder / "config.yaml").read_text()
    decisions = json.loads((run_folder / "decisions.json").read_text())
    assert [decision["option"] for decision in decisions] == ["actor.dtype"], "what the trainer decides is kept too"
    assert f"run folder: {run_folder}" in capsys.readouterr().err.replace("\n", "")


def test_a_dry_run_prints_what_would_run_and_starts_nothing(
    train: Train, trainer: object, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--dry-run", "gconfig.n_samples=7") == 0
    printed = capsys.readouterr().out
    assert "n_samples: 7\n" in printed
    assert "1 of 8 ranks" in printed
    assert re.search(r"^trainer +actor, rollout +1 +machine 0: devices 0 +anywhere *$", printed, re.MULTILINE)
    assert not trainer.RUNS  # type: ignore[attr-defined]
    assert not run_folder.exists()


def test_a_dry_run_names_missing_packages_and_still_succeeds(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dry-run", "scheduler.type=ray", "rollout.backend=vllm:d2t2p1") == 0
    printed = capsys.readouterr().out
    assert "- archon-ray, which is not installed; for scheduler.type: ray" in printed
    assert "pip install archon-ray archon-rollout archon-vllm" in printed


def test_a_dry_run_prints_its_plan_as_json(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["rollout.backend=vllm:d2t2p1", "actor.backend=archon:d4", "reward=gsm9k"]
    assert train("--dry-run", "--json", *overrides) == 2
    plan = json.loads(capsys.readouterr().out)
    assert not plan["can_run"]
    assert [(part["name"], part["roles"]) for part in plan["parts"]] == [
        ("trainer", ["actor"]),
        ("server 0", ["rollout"]),
        ("server 1", ["rollout"]),
    ]
    assert plan["parts"][1]["processes"] == [{"rank": 0, "node": 0, "devices": [4, 5]}]
    assert plan["missing_packages"][0]["command"] == "pip install archon-vllm"
    assert [obstacle["kind"] for obstacle in plan["obstacles"]] == ["config"]
    assert train("--json") == 2
    assert "--json: found without --dry-run" in capsys.readouterr().err


def test_a_file_that_does_not_load_has_its_errors_as_json(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    """The form is that of a plan: whoever reads one needs no second format."""
    for overrides, found in ((["sed=1"], ["unknown option sed"]), (["sed=1", "see=2"], ["option sed", "option see"])):
        assert train("--dry-run", "--json", *overrides) == 2
        printed = capsys.readouterr()
        plan = json.loads(printed.out)
        assert not plan["can_run"]
        assert [obstacle["kind"] for obstacle in plan["obstacles"]] == ["config"] * len(found)
        for obstacle, text in zip(plan["obstacles"], found, strict=True):
            assert text in obstacle["text"]
            assert obstacle["text"] in printed.err


def test_a_dry_run_of_a_wrong_configuration_fails(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dry-run", "actor.backend=archon:d0") == 2
    assert "errors in the configuration:" in capsys.readouterr().out
    assert train("--dry-run", "sed=1") == 2
    assert "unknown option sed; did you mean 'seed'?" in capsys.readouterr().err


def test_a_run_that_something_stops_lists_everything_and_starts_nothing(
    train: Train, trainer: object, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("scheduler.type=ray", "actor.backend=archon:d8p2", "actor.path=/no/such") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    for part in ("archon-ray", "archon-pipeline", "16", "/no/such"):
        assert part in printed
    assert not trainer.RUNS  # type: ignore[attr-defined]
    assert not run_folder.exists()


def test_what_the_engine_cannot_do_stops_a_run_too(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("actor.backend=plain:d1", "actor.dtype=float32") == 2
    assert "actor.dtype: found a type; this engine has one of its own" in capsys.readouterr().err
    assert train("actor.backend=plain:d1") == 0


def test_what_engines_record_is_written_into_the_run_folder(
    train: Train, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("reward=report") == 0
    assert (run_folder / "ac_debug-rank0.txt").read_text() == "layers.0: kept all\n"
    assert "layers.0: kept all" in capsys.readouterr().out
    assert (run_folder / "pipeline-actor.json").read_text() == "[]"


def test_deterministic_mode_is_set_before_any_process_group_exists(
    train: Train, trainer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archon_core.ranks.environment import RankEnvironment
    from archon_train.cli.training import _joined

    order: list[str] = []
    monkeypatch.setattr("archon_engine.distributed.determinism.set_deterministic", lambda: order.append("flags"))
    monkeypatch.setattr("archon_engine.distributed.process_group.process_group", lambda *_, **__: order.append("group"))
    assert train() == 0
    assert order == []
    assert train("trial_name=other", "ref={archon: {use_deterministic_algorithms: true}}") == 0
    assert order == ["flags"]
    (_, run) = trainer.RUNS  # type: ignore[attr-defined]
    _joined(RankEnvironment(0, 2, 0, 2), run.config, (), [])
    assert order == ["flags", "flags", "group"]


def test_a_run_that_fails_says_why_and_keeps_its_decisions(
    train: Train, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("reward=fail") == 2
    assert "step 2: found no gold; dig elsewhere" in capsys.readouterr().err
    assert "the engine says so" in (run_folder / "decisions.json").read_text()


@pytest.mark.parametrize(
    ("how", "code"), [("stop", 130), ("terminate", 143), ("terminate-by-exception", 143), ("interrupt-twice", 130)]
)
def test_an_interrupted_run_says_so_and_exits_as_the_signal_does(
    train: Train, how: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert train(f"reward={how}") == code
    assert "there is no checkpoint yet" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupted_run_names_its_last_checkpoint_and_the_command_that_goes_on(
    train: Train, trainer: object, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("reward=checkpoint-then-stop", "gconfig.stop_token_ids=[1, 2]") == 130
    printed = capsys.readouterr().err
    assert f"{run_folder}/checkpoints/step-00000003; to continue from step 3: " in printed
    command = shlex.split(printed.rpartition("step 3: ")[2])
    assert command[:2] == ["archon", "train"]
    assert command[3:] == ["reward=checkpoint-then-stop", "gconfig.stop_token_ids=[1, 2]", "--resume"]
    assert train("reward=nothing", "--resume") == 0
    assert trainer.RUNS[-1].config.trainer.resume is True  # type: ignore[attr-defined]


def test_a_second_run_in_the_same_folder_is_refused(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("reward=checkpoint") == 0
    assert train("reward=checkpoint") == 2
    assert "found an earlier run" in capsys.readouterr().err


def test_a_restart_sets_the_earlier_run_aside_and_deletes_nothing(
    train: Train, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [train("reward=checkpoint", "--restart") for _ in range(3)]
    assert runs == [0, 0, 0]
    for suffix in ("", ".1", ".2"):
        assert (run_folder.with_name(run_folder.name + suffix) / "checkpoints" / "step-00000003" / "weights").is_file()
    assert f"earlier run set aside: {run_folder}.2" in capsys.readouterr().err
    assert train("--restart", "--resume") == 2
    assert "found trainer.resume=true as well" in capsys.readouterr().err


def test_resuming_nothing_is_refused_and_makes_no_folder(
    train: Train, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--resume") == 2
    assert "trainer.resume: found no run in" in capsys.readouterr().err
    assert not run_folder.exists()


def test_resuming_with_other_options_names_each_of_them(
    train: Train, trainer: object, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("reward=checkpoint") == 0
    assert train("reward=checkpoint", "actor.optimizer.lr=0.5", "gconfig.stop_token_ids=[7]", "--resume") == 0
    assert "before this resume it was" in capsys.readouterr().out
    changes = [
        (decision["option"], decision["requested"], decision["effective"], decision["reason"])
        for decision in json.loads((run_folder / "decisions.json").read_text())
        if decision["option"] != "actor.dtype"
    ]
    assert changes == [
        ("actor.optimizer.lr", "0.5", "0.5", "before this resume it was 1.0e-05"),
        ("gconfig.stop_token_ids", "[7]", "[7]", "before this resume it was []"),
    ]


def test_resuming_with_another_algorithm_is_refused(
    train: Train, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("reward=checkpoint") == 0
    assert train("algorithm=other", "--resume") == 2
    assert "started with fake; set algorithm=fake" in capsys.readouterr().err
    assert "algorithm: fake\n" in (run_folder / "config.yaml").read_text()


@pytest.mark.parametrize("stopped", ["in its first step", "while it started"])
def test_resuming_a_run_without_a_checkpoint_starts_again_and_says_so(
    train: Train, trainer: object, run_folder: Path, stopped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if stopped == "in its first step":
        assert train("reward=stop") == 130
    else:
        (run_folder / "logs" / "start-1").mkdir(parents=True)
    assert train("reward=nothing", "--resume") == 0
    assert trainer.RUNS[-1].config.trainer.resume is False  # type: ignore[attr-defined]
    reason = "the run stopped before its first checkpoint, so it starts over"
    assert reason in [decision["reason"] for decision in json.loads((run_folder / "decisions.json").read_text())]
    assert reason in " ".join(capsys.readouterr().out.split())


def test_automatic_resumption_goes_on_when_it_can_and_starts_when_it_cannot(train: Train, trainer: object) -> None:
    assert train("reward=checkpoint", "trainer.auto_resume=true") == 0
    assert train("reward=nothing", "trainer.auto_resume=true") == 0
    runs = trainer.RUNS  # type: ignore[attr-defined]
    assert [run.config.trainer.resume for run in runs] == [False, True]
    options = [(d.option, d.effective, d.reason) for d in runs[1].decisions]
    assert ("trainer.auto_resume", "resume=true", "found step 3") in options


def test_a_launcher_gets_the_plan_and_the_file_and_says_how_the_ranks_ended(
    train: Train, trainer: object, run_folder: Path
) -> None:
    assert train("scheduler.type=elsewhere", "actor.backend=archon:d2") == 0
    launch, resume, closed = trainer.RUNS  # type: ignore[attr-defined]
    assert [len(part.processes) for part in launch.plan] == [2]
    assert launch.source.is_absolute()
    assert launch.overrides[-2:] == ["scheduler.type=elsewhere", "actor.backend=archon:d2"]
    assert launch.folder == run_folder.absolute()
    assert (resume, closed) == (False, "closed")


def test_the_rank_that_failed_first_elsewhere_is_named_with_its_machine(
    train: Train, trainer: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("scheduler.type=elsewhere", "actor.backend=archon:d2", "reward=fail", "trainer.max_restarts=1") == 1
    _, *resumes, _ = trainer.RUNS  # type: ignore[attr-defined]
    assert resumes == [False, True], "a restart continues from the last checkpoint"
    error = (
        "error: rank 1 of 2 (process 12 on n2) failed first, with exit code 7 and no error message; its output is in"
    )
    assert error in " ".join(capsys.readouterr().err.split())


def test_ranks_that_were_stopped_elsewhere_end_the_run_like_a_signal(train: Train, trainer: object) -> None:
    assert train("scheduler.type=elsewhere", "actor.backend=archon:d2", "reward=stop") == 143


def test_ranks_that_one_machine_does_not_hold_are_started_by_the_command_that_is_shown(
    train: Train, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = ("actor.backend=archon:d8", "cluster.n_nodes=2", "cluster.n_gpus_per_node=4")
    assert train(*several) == 2
    command = "torchrun --nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --rdzv-id=archon --nproc-per-node=4 "
    assert command + "-m archon_core.cli train " in capsys.readouterr().err
    assert not run_folder.exists()
    assert train(*several, "--dry-run") == 0
    assert command in capsys.readouterr().out


def test_a_launcher_that_says_half_of_what_it_should_is_refused(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train() == 2
    assert "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT missing" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_a_users_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["train", "nowhere.yaml"])
    assert exit.value.code == 2
    assert "nowhere.yaml: cannot be read: No such file or directory" in capsys.readouterr().err


def test_a_dry_run_imports_no_torch(write: Callable[[str], Path]) -> None:
    import subprocess

    path = write("{actor: {path: a/b}, reward: arithmetic, data: {dataset: arithmetic}, gconfig: {n_samples: 4}}\n")
    code = (
        "import sys\n"
        "from archon_core.cli.main import main\n"
        f"try: main(['train', {str(path)!r}, '--dry-run'])\n"
        "except SystemExit as exit: assert exit.code == 0, exit.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "ARCHON_DISABLE_PLUGINS": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL, timeout=60)
