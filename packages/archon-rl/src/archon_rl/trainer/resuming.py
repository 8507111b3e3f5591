"""Compares the inputs of a resumed run with those of its checkpoint: data, tokenizer, chat template, reward.

A change is an error unless ``trainer.accept_changed`` lists it; then it is recorded as a decision, and later
checkpoints store the new fingerprints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from archon_core.contracts.data import Dataset
from archon_core.contracts.decisions import Decision
from archon_core.errors import ArchonError, ConfigError
from archon_core.ranks.failing_together import failing_together
from archon_engine.checkpoint.publication import publish_folder
from archon_rl.chosen_function import ChosenFunction
from archon_rl.fingerprint import Fingerprint
from archon_rl.rewards.calls import RewardRunner
from archon_rl.tokenization import build_tokenizer, load_tokenizer
from archon_rl.trainer.checkpointing import (
    TOKENIZER_FOLDER,
    TrainerState,
    read_state,
    resumed_checkpoint,
    with_resume_advice,
)
from archon_rl.trainer.fingerprint import records_fingerprint, template_fingerprint, tokenizer_fingerprint
from archon_rl.workflows.own_code import WORKFLOW, code_fingerprints
from archon_train.run.context import RunContext

OPTION = "trainer.accept_changed"
AT_ITS_PATH = " at its path"
"""Suffix of the fingerprints of the tokenizer at its original path, as opposed to the run's copy."""

LABELS = {
    "data": "training records",
    "validation": "held-out records",
    "tokenizer": "tokenizer",
    "chat_template": "chat template",
    "reward": "reward",
    "workflow": "workflow",
}
"""Values of ``trainer.accept_changed`` -> their names in messages. Fingerprints of other names are of options whose
functions belong to the workflow (``own_code``)."""


def fingerprints(
    run: RunContext,
    train: Dataset,
    validation: Dataset,
    *,
    reward: RewardRunner | None = None,
    code: Mapping[str, Sequence[ChosenFunction]] | None = None,
) -> dict[str, Fingerprint]:
    """Fingerprints of the run's inputs by name; a resumed run compares them with its checkpoint. Collective.

    The first rank computes them.

    Args:
        run: the run.
        train: the training records.
        validation: the held-out records; may be empty.
        reward: started here on the first rank; ``None`` for algorithms without one.
        code: functions of the user's own modules, by option (``own_code``). That of the workflow, or the agent, is
            imported here on the first rank.

    Raises:
        ConfigError: on every rank, an input changed that ``trainer.accept_changed`` does not list.
        DamagedError: on every rank, the checkpoint's ``trainer.json`` cannot be read.
        ArchonError: on every rank, the reward function or the workflow cannot be imported.
    """
    checkpoint = resumed_checkpoint(run)
    found: dict[str, Fingerprint] = {}
    decisions: list[Decision] = []
    # Outside failing_together, so that the advice reaches the error of every rank.
    with nullcontext() if checkpoint is None else with_resume_advice(checkpoint), failing_together(run.ranks):
        if run.ranks.is_first:
            found = _fingerprints(run.config, train, validation, run.folder.path / TOKENIZER_FOLDER)
            if reward is not None:
                found["reward"] = reward.start()
            for function in (code or {}).get(WORKFLOW, ()):
                function.load()
            found |= code_fingerprints(code or {})
            if checkpoint is not None:
                decisions = _compare(run.config, checkpoint, read_state(run, checkpoint), found)
    run.record(run.ranks.broadcast(decisions))
    return run.ranks.broadcast(found)


def refresh_tokenizer(run: RunContext, folder: Path) -> None:
    """Copy the tokenizer again if its source changed and the user accepts the change. For the first rank."""
    config, checkpoint = run.config, run.folder.latest_checkpoint()
    if not {"tokenizer", "chat_template"} & set(config.trainer.accept_changed) or checkpoint is None:
        return
    with with_resume_advice(checkpoint):
        before = read_state(run, checkpoint).fingerprints or {}
    source = _source_tokenizer(config)
    if source is None:
        return
    now = _of_tokenizer(source, AT_ITS_PATH)
    if any(name in before and before[name]["digest"] != found.digest for name, found in now.items()):
        with publish_folder(folder) as writing:
            source.save_pretrained(writing)


def _fingerprints(config: Any, train: Dataset, validation: Dataset, tokenizer_folder: Path) -> dict[str, Fingerprint]:
    source = _source_tokenizer(config)
    return {
        "data": records_fingerprint(_each(train)),
        "validation": records_fingerprint(_each(validation)),
        # Read from the folder, as other ranks and resumed runs do.
        **_of_tokenizer(load_tokenizer(tokenizer_folder)),
        **({} if source is None else _of_tokenizer(source, AT_ITS_PATH)),
    }


def _of_tokenizer(tokenizer: Any, suffix: str = "") -> dict[str, Fingerprint]:
    return {
        f"tokenizer{suffix}": tokenizer_fingerprint(tokenizer),
        f"chat_template{suffix}": template_fingerprint(tokenizer),
    }


def _source_tokenizer(config: Any) -> Any:
    """The tokenizer at its original path; ``None`` if it was built, or the path is gone."""
    if config.tokenizer.kind != "pretrained":
        return None
    try:
        return build_tokenizer(config, ())
    except ArchonError:
        return None


def _each(dataset: Dataset) -> Any:
    return (dataset[index] for index in range(len(dataset)))


def _compare(config: Any, checkpoint: Path, state: TrainerState, found: Mapping[str, Fingerprint]) -> list[Decision]:
    """Decisions about accepted changes. Raises ConfigError if a change is not accepted."""
    if state.fingerprints is None:
        reason = "an earlier version of archon-rl wrote the checkpoint, without fingerprints of the run's inputs"
        return [Decision("trainer.resume", ", ".join(LABELS), "not compared with the checkpoint", reason)]
    before = {name: Fingerprint(**entry) for name, entry in state.fingerprints.items()}
    changed, decisions = [], []
    for name, expected in before.items():
        label = _label(name)
        if name not in found:
            decisions.append(Decision("trainer.resume", f"{label}: {expected}", "not compared", "it no longer exists"))
        elif found[name].digest != expected.digest:
            if _option(name) == "chat_template" and not config.tokenizer.use_chat_template:
                continue
            changed.append(name)
        elif found[name].about != expected.about:
            reason = f"the version changed, the source of the {label} is the same"
            decisions.append(Decision("trainer.resume", expected.about, found[name].about, reason))
    refused = [name for name in changed if _option(name) not in config.trainer.accept_changed]
    if refused:
        raise ConfigError(_refusal(checkpoint, refused, found, before))
    decisions += [
        Decision(
            OPTION,
            f"{_label(name)}: {before[name]}",
            str(found[name]),
            f"accepted by {OPTION}: used after step {state.step}",
        )
        for name in changed
    ]
    return decisions


def _refusal(
    checkpoint: Path, changed: list[str], found: Mapping[str, Fingerprint], before: Mapping[str, Fingerprint]
) -> str:
    lines = [f"  {_label(name)}: found {found[name]}, the run started with {before[name]}" for name in changed]
    options = ",".join(dict.fromkeys(_option(name) for name in changed))
    return (
        f"checkpoint {checkpoint}: the run's inputs changed since it was written:\n"
        + "\n".join(lines)
        + f"\nrestore them, accept the change with {OPTION}=[{options}], or start a new run with --restart"
    )


def _option(name: str) -> str:
    found = name.removesuffix(AT_ITS_PATH)
    return found if found in LABELS else WORKFLOW


def _label(name: str) -> str:
    label = LABELS.get(name.removesuffix(AT_ITS_PATH), f"{WORKFLOW}, {name}")
    return label + (AT_ITS_PATH if name.endswith(AT_ITS_PATH) else "")
