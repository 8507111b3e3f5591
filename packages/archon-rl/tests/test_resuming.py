"""A resumed run goes on with what it began with: other records, tokenizer, template or reward are found and named."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_results import rows

from archon_core.errors import ConfigError
from archon_core.plugins import RewardSpec, registry
from archon_engine.checkpoint.seal import seal_whole, write_seal
from archon_rl.tokenization import characters_tokenizer

CHARACTERS = "0123456789+=ab"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
REWARD = """
from written_rewards.scale import scaled


def longer(prompt, completion, record):
    return scaled(len(completion))
"""
SCALE = "def scaled(value):\n    return 0.1 * value\n"


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that writes the package of a reward and has it imported anew, as another process would."""
    package = tmp_path / "site" / "written_rewards"
    package.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = RewardSpec(name="longer", target="written_rewards.length:longer")

    def write(**modules: str) -> None:
        for name, source in {"__init__": "", **modules}.items():
            (package / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
            del sys.modules[name]

    write(length=REWARD, scale=SCALE)
    registry().add(spec)
    yield write
    registry().remove("reward", "longer")


@pytest.fixture
def begun(run, reward, tmp_path: Path):
    """A run that was stopped after two of four steps; called with overrides, it is resumed."""
    tokenizer = characters_tokenizer([CHARACTERS])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "data.jsonl").write_text("".join(record(n) for n in range(8)))
    options = (
        "reward=longer",
        "trainer.max_steps=4",
        f"tokenizer_path={tmp_path / 'tokenizer'}",
        "tokenizer.kind=pretrained",
        "data.dataset=jsonl",
        f"data.path={tmp_path / 'data.jsonl'}",
        "data.validation_size=2",
        "trainer.eval_every=0",
    )
    with pytest.raises(KeyboardInterrupt):
        run(*options, stop_after=2)
    run.whole = lambda: rows(run(*options, "trial_name=whole"))
    return lambda *more, **ranks: run(*options, "trainer.resume=true", *more, **ranks)


def record(number: int, answer: int | None = None) -> str:
    return json.dumps({"question": f"{number}+1=", "answer": str(number + 1 if answer is None else answer)}) + "\n"


def change_records(root: Path) -> None:
    (root / "data.jsonl").write_text("".join(record(n, answer=9) for n in range(8)))


def swap_records(root: Path) -> None:
    lines = (root / "data.jsonl").read_text().splitlines(keepends=True)
    (root / "data.jsonl").write_text("".join(reversed(lines)))


def add_a_record(root: Path) -> None:
    (root / "data.jsonl").write_text((root / "data.jsonl").read_text() + record(8))


def change_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["0"], vocabulary["1"] = vocabulary["1"], vocabulary["0"]
    file.write_text(json.dumps(content))


def change_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    assert file.read_text() == TEMPLATE
    file.write_text("a" + TEMPLATE)


CHANGES = {
    "records": (change_records, "", ["data", "validation"]),
    "their order": (swap_records, "", ["data", "validation"]),
    "one record more": (add_a_record, "", ["data", "validation"]),
    "the tokenizer at its path": (change_tokenizer, "tokenizer", ["tokenizer"]),
    "the run's tokenizer": (change_tokenizer, "test/trial/tokenizer", ["tokenizer"]),
    "the template at its path": (change_template, "tokenizer", ["chat_template"]),
    "the run's template": (change_template, "test/trial/tokenizer", ["chat_template"]),
}
LABELS = {"data": "training records", "validation": "held-out records", "chat_template": "chat template"}


@pytest.mark.parametrize(("change", "place", "names"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_refused_by_name_and_an_accepted_one_is_a_decision(run, begun, tmp_path, change, place, names):
    change(tmp_path / place)
    with pytest.raises(ConfigError) as refused:
        begun()
    lines = str(refused.value).splitlines()
    for line, name in zip(lines[1:-1], names, strict=True):
        assert line.lstrip().startswith(LABELS.get(name, name))
        assert ": found " in line
        assert ", the run started with " in line
    assert f"accept the change with trainer.accept_changed=[{','.join(names)}]" in lines[-1]
    assert "--restart" in lines[-1]

    accepted = begun(f"trainer.accept_changed=[{','.join(names)}]")
    assert rows(accepted)[-1]["step"] == 4
    decisions = [d for d in run.context.decisions if d.option == "trainer.accept_changed"]
    assert len(decisions) >= len(names)
    assert all(d.reason == "accepted by trainer.accept_changed: used after step 2" for d in decisions)
    # The next checkpoint knows the new state of things, so nothing has to be accepted again.
    run.context.decisions.clear()
    begun()
    assert not [d for d in run.context.decisions if d.option == "trainer.accept_changed"]


@pytest.mark.parametrize(
    ("module", "source"),
    [("length", REWARD.replace("len(completion)", "-len(completion)")), ("scale", SCALE.replace("0.1", "0.2"))],
    ids=["the reward itself", "a module that it imports"],
)
def test_another_reward_under_the_same_name_is_refused_unless_it_is_accepted(run, begun, reward, module, source):
    reward(**{module: source})
    with pytest.raises(ConfigError, match=r"(?s)reward: found reward 'longer' .*trainer\.accept_changed=\[reward\]"):
        begun()
    assert rows(begun("trainer.accept_changed=[reward]"))[-1]["step"] == 4


def test_what_has_not_changed_resumes_with_the_same_numbers(run, begun, reward):
    reward(length=REWARD, scale=SCALE)  # written anew, with the same content
    assert rows(begun()) == run.whole()
    assert not [d for d in run.context.decisions if d.option in ("trainer.resume", "trainer.accept_changed")]


def test_fingerprints_are_the_same_on_every_number_of_ranks(run, begun):
    begun("actor.backend=bigram:d2", ranks=2)
    assert not [d for d in run.context.decisions if d.option in ("trainer.resume", "trainer.accept_changed")]
    written = [json.loads((run.folder().checkpoint_path(n) / "trainer.json").read_text()) for n in (2, 4)]
    assert written[0]["fingerprints"] == written[1]["fingerprints"]


def test_ranks_refuse_together_and_only_the_first_reads_the_records(run, begun, tmp_path, monkeypatch):
    from archon_rl.trainer import resuming

    read = []
    hashed = resuming.records_fingerprint
    monkeypatch.setattr(resuming, "records_fingerprint", lambda records: read.append(1) or hashed(records))
    change_records(tmp_path)
    with pytest.raises(ConfigError, match="the run's inputs changed"):
        begun("actor.backend=bigram:d2", ranks=2)
    assert len(read) == 2  # training and held-out records, once each


def test_a_template_that_is_not_used_may_change(begun, run, tmp_path):
    change_template(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match="chat template"):
        begun()
    assert rows(begun("tokenizer.use_chat_template=false"))[-1]["step"] == 4


def test_an_accepted_tokenizer_replaces_the_runs_own_copy(run, begun, tmp_path):
    change_template(tmp_path / "tokenizer")
    begun("trainer.accept_changed=[chat_template]")
    copy = run.folder().path / "tokenizer/chat_template.jinja"
    assert copy.read_text() == "a" + TEMPLATE
    assert run.trainer is not None
    assert (run.folder().export / "chat_template.jinja").read_text() == "a" + TEMPLATE


def test_a_tokenizer_whose_source_is_gone_is_not_compared_and_the_run_says_so(run, begun, tmp_path):
    shutil.rmtree(tmp_path / "tokenizer")
    begun()
    reasons = {
        d.requested.partition(":")[0]: d.effective for d in run.context.decisions if d.option == "trainer.resume"
    }
    assert reasons == {"tokenizer at its path": "not compared", "chat template at its path": "not compared"}


def test_a_checkpoint_without_fingerprints_is_resumed_and_the_run_says_that_nothing_was_compared(run, begun, tmp_path):
    file = run.folder().latest_checkpoint() / "trainer.json"
    state = json.loads(file.read_text())
    del state["fingerprints"]
    file.write_text(json.dumps(state))
    write_seal(file.parent, {file.name: seal_whole(file)})
    change_records(tmp_path)
    assert rows(begun())[-1]["step"] == 4
    [decision] = [d for d in run.context.decisions if d.option == "trainer.resume"]
    assert decision.effective == "not compared with the checkpoint"


def test_names_that_can_be_accepted_are_checked_with_the_configuration(run):
    with pytest.raises(ConfigError, match=r"trainer\.accept_changed: found .*'dta'.*did you mean 'data'"):
        run.config("trainer.accept_changed=[dta]")
