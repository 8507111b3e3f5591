"""Contracts of runs: algorithms, trainers and dialects of configuration files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from archon_core.contracts.spec import Spec


@dataclass(frozen=True)
class AlgorithmSpec(Spec):
    """A training algorithm. ``target`` names the algorithm's composition, in a form that its trainer understands.

    Attributes:
        trainer: target of a ``TrainerFactory``.
        needs: kinds of plugin that the algorithm requires, such as ``"inference_engine"`` or ``"reward"``.
        sections: sections of models beside the actor that a configuration must have, such as ``"critic"``.
        separable: sections of models that its trainer can run on their own ranks
            (``scheduling_strategy.type: separation``).
        preview: target of ``preview(outline) -> RunPreview``, which finds problems and unused options of a run
            (``RunOutline``) before it starts. It must not import torch. Empty for no checks.
        explain: target of ``explain(name) -> str``, which advises users who write ``name``, not the name of any
            algorithm: such as the options of a published variant. It returns an empty text for other names and must
            not import torch. Empty for no advice.
    """

    kind: ClassVar[str] = "algorithm"
    hook: ClassVar[str] = "archon_algorithms"

    trainer: str = ""
    needs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    separable: tuple[str, ...] = ()
    preview: str = ""
    explain: str = ""

    def load_trainer(self) -> Any:
        """Import the trainer factory."""
        return self.load_part("trainer")


@dataclass(frozen=True)
class DialectSpec(Spec):
    """A reader for configuration files of another program. ``target`` names an ``archon_core.config.dialect.Dialect``.

    The target must not import torch, because every reading of a configuration loads the dialects.
    """

    kind: ClassVar[str] = "dialect"
    hook: ClassVar[str] = "archon_dialects"


class Trainer(Protocol):
    """Runs training. ``fit`` returns when training is complete."""

    def fit(self) -> None: ...


class TrainerFactory(Protocol):
    """``trainer`` of an ``AlgorithmSpec``.

    ``run`` is an ``archon_train.run.context.RunContext``; ``algorithm`` is what the spec's target loads.
    """

    def __call__(self, run: Any, algorithm: Any) -> Trainer: ...
