"""Prepares the teacher of a run: its weights, the check of its vocabulary, and its reward on held-out records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from archon_core.contracts.decisions import Decision
from archon_core.errors import ArchonError, ConfigError
from archon_core.ranks.failing_together import failing_together
from archon_engine.models.hf_config import checkpoint_folder, load_hf_config
from archon_engine.models.tokenizer import read_tokenizer
from archon_rl.trainer.engines import (
    build_inference_engine,
    complete_model_config,
    engine_layout,
    with_checkpoint,
)
from archon_rl.trainer.sharing import SharedEngine
from archon_rl.trainer.task import Task
from archon_rl.trainer.warm_start import WarmStart
from archon_train.run.context import RunContext
from archon_train.teacher_servers import unused_teacher_options

NAMED = 3
"""Number of differing tokens that a message names."""


def prepare_teacher(run: RunContext, actor: Any, task: Task) -> Any:
    """The ``teacher`` section for a frozen engine, after the teacher's supervised steps if it has some. Collective.

    Args:
        actor: the complete section of the actor.

    Raises:
        ConfigError: on every rank, the teacher's vocabulary is not that of the actor.
        KeyboardInterrupt: the user asked to stop during the supervised steps.
    """
    tokenizer = task.encoder.tokenizer
    run.record(unused_teacher_options(run.config, run.explicit))
    if "teacher" in run.links and run.config.trainer.eval_before_train:
        reason = "only the actor's ranks sample"
        run.record([Decision("trainer.eval_before_train", "true", "without the teacher, on its own ranks", reason)])
    section = complete_model_config(run, tokenizer, "teacher")
    _check_vocabulary(run, section, actor, tokenizer)
    actor_steps = run.config.warm_start.steps
    checkpoint = WarmStart("teacher", section.warm_start, last_step=-actor_steps).run(run, section, task)
    if checkpoint is not None:
        section = with_checkpoint(section, checkpoint)
    return replace(section, optimizer=None)


def evaluates_teacher(run: RunContext) -> bool:
    """Whether a run with held-out records evaluates its teacher: before training, on the trainer's ranks."""
    samples = engine_layout(run, "rollout").on_trainer_ranks and "teacher" not in run.links
    return run.config.trainer.eval_before_train and samples


def report_teacher(run: RunContext, teacher: SharedEngine, evaluate: Callable[..., dict[str, float]]) -> None:
    """Note and log the teacher's reward on the held-out records. Collective.

    Args:
        evaluate: returns the metrics of the held-out records for an inference engine and ``data_ranks``.
    """
    with teacher.onloaded() as engine:
        # The teacher may have no experts, or others.
        rollout = build_inference_engine(run, engine, return_routed_experts=False)
        try:
            found = evaluate(rollout, data_ranks=engine.data_ranks)
        finally:
            rollout.close()
    run.metrics.log(0, {name.replace("eval/", "eval/teacher_"): value for name, value in found.items()})
    shown = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in found.items())
    run.progress.note(f"Held-out records with the teacher: {shown}")


def _check_vocabulary(run: RunContext, teacher: Any, actor: Any, tokenizer: Any) -> None:
    """The first rank compares; all record its decisions."""
    decisions: list[Decision] = []
    with failing_together(run.ranks):
        if run.ranks.is_first:
            _check_sizes(teacher, actor)
            if teacher.path and not teacher.init_from_scratch:
                decisions = compare_tokenizers(teacher.path, tokenizer)
    run.record(run.ranks.broadcast(decisions))


def _check_sizes(teacher: Any, actor: Any) -> None:
    sizes = [vocab_size_of(section) for section in (teacher, actor)]
    if None in sizes:
        return
    found, needed = sizes
    if found < needed:
        source = f"teacher.path={teacher.path!r}" if teacher.path else "teacher.model_config"
        raise ConfigError(
            f"{source}: found a vocabulary of {found} tokens; allowed is at least {needed}, the actor's, which may "
            "sample any of its tokens; choose a teacher with the actor's vocabulary"
        )


def vocab_size_of(section: Any) -> int | None:
    """The vocabulary of a section's model; ``None`` if its configuration cannot be read here."""
    try:
        source = section.model_config if section.model_config is not None else section.path
        return getattr(load_hf_config(source), "vocab_size", None)
    except ArchonError:
        # The engine may read other formats, and reports unreadable models itself.
        return None


def compare_tokenizers(path: str, tokenizer: Any) -> list[Decision]:
    """Raises ConfigError if a token has different ids; a decision for what could not be compared."""
    ours: Mapping[str, int] = tokenizer.get_vocab()
    try:
        theirs: Mapping[str, int] = read_tokenizer(Path(checkpoint_folder(path, weights=False))).get_vocab()
    except ArchonError as error:
        return [
            Decision(
                "teacher.path",
                "the actor's vocabulary",
                "compared by its size alone",
                f"the teacher's tokenizer cannot be read: {error}",
            )
        ]
    by_id = {index: token for token, index in theirs.items()}
    different = [
        f"{token!r} is {index} here and {theirs.get(token, 'not in its vocabulary')} there"
        for token, index in sorted(ours.items(), key=lambda entry: entry[1])
        if theirs.get(token, index) != index or by_id.get(index, token) != token
    ]
    if different:
        more = f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
        raise ConfigError(
            f"teacher.path: found {path!r}, whose tokenizer has other ids for {len(different)} of {len(ours)} tokens: "
            f"{', '.join(different[:NAMED])}{more}; allowed are models with the vocabulary of the run's tokenizer; "
            "choose a teacher of the actor's family"
        )
    unknown = sorted(ours.keys() - theirs.keys(), key=ours.__getitem__)
    if not unknown:
        return []
    return [
        Decision(
            "teacher.path",
            "the actor's vocabulary",
            f"without {len(unknown)} of its tokens: {', '.join(map(repr, unknown[:NAMED]))}",
            "the teacher's tokenizer has no such tokens; the teacher's probabilities for them were never trained",
        )
    ]
