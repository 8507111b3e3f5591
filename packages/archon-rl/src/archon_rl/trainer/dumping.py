"""``TrajectoryDump``: writes the trajectories of each step (``rollout.dump_to_file``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archon_core.ranks.failing_together import failing_together
from archon_core.ranks.ranks import Ranks
from archon_rl.collector.group import Group
from archon_rl.collector.window import Settled
from archon_rl.text_encoding import TextEncoder
from archon_rl.trajectory_files import line_of, write_step
from archon_train.run.folder import RunFolder


@dataclass(frozen=True)
class TrajectoryDump:
    """Writes the groups of steps into the run folder.

    Attributes:
        folder: the run folder.
        encoder: decodes tokens.
        ranks: the first one writes.
    """

    folder: RunFolder
    encoder: TextEncoder
    ranks: Ranks

    def __call__(
        self,
        step: int,
        groups: Mapping[int, Settled[Group]],
        trainer_logprobs: Mapping[tuple[int, ...], Sequence[float]],
    ) -> None:
        """Write the groups of ``step``, counted from 0, by number, unless they have no trajectories. Collective.

        Args:
            trainer_logprobs: token ids of some trajectories -> log-probability of each token under the weights before
                the step. These trajectories get the text of each token too.
        """
        with failing_together(self.ranks):
            if self.ranks.is_first:
                decode = self.encoder.decode_literally
                lines = [
                    line_of(
                        one,
                        decode,
                        step=step + 1,
                        group=number,
                        sample=sample,
                        dropped=settled.reason,
                        trainer_logprobs=trainer_logprobs.get(tuple(one.token_ids)),
                    )
                    for number, settled in sorted(groups.items())
                    for sample, one in enumerate(settled.group.trajectories)
                ]
                write_step(self.folder.path, step + 1, lines)
