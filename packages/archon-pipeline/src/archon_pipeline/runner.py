"""The pipelined runner: executes a schedule's actions on the stages of this process.

Ours instead of torch's schedule objects, because the number of micro-batches and their length change from step to step,
every schedule must also run forward passes alone, and what a rank does when is worth looking at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from archon_core.contracts.batch import MicroBatch
from archon_core.contracts.packed import OutputName, PackedSequences
from archon_core.contracts.pipeline import Action, ActionKind, Objective, PipelineParts
from archon_core.errors import TrainingError
from archon_pipeline.channels import Header, Links, Mailbox
from archon_pipeline.clock import ActionClock
from archon_pipeline.program import Message, Programs, RankProgram, result_of
from archon_pipeline.recording import Recording, render_recording
from archon_pipeline.stage_passes import StagePasses
from archon_pipeline.timeline import Timeline


class PipelinedRunner:
    """Runs micro-batches through the stages of a pipeline (``archon_core.contracts.pipeline.Runner``).

    Args:
        pipeline: this process's part of it.
    """

    def __init__(self, pipeline: PipelineParts) -> None:
        self._pipeline = pipeline
        n_stages = len(pipeline.plan)
        self._links = Links(pipeline.group, pipeline.plan.rank_of, pipeline.device)
        self._passes = {
            number: StagePasses(module, pipeline.groups[number], is_first=number == 0, is_last=number == n_stages - 1)
            for number, module in pipeline.stages.items()
        }
        schedule = pipeline.schedule
        self._programs = Programs(schedule.load(), schedule, pipeline.plan, pipeline.group.size(), pipeline.rank)
        self._clock: ActionClock | None = None
        self._records_next = False
        self._is_aborted = False
        self._forms: dict[OutputName, tuple[tuple[int, ...], torch.dtype]] = {}

    def train(self, micro_batches: Sequence[MicroBatch], objective: Objective) -> None:
        """Accumulate the gradients of the sum of ``objective`` over all micro-batches. Collective.

        The objective is called on the rank that holds the last stage.

        Raises:
            TrainingError: ranks were given different micro-batches, or a stage hands on something else than it should.
            PluginError: the schedule cannot be executed.
        """
        program = self._programs.training(len(micro_batches))
        mailbox = self._open(program, micro_batches, is_training=True)
        groups = self._pipeline.groups
        self._clock = ActionClock(self._pipeline.device) if self._records_next else None
        self._records_next = False
        try:
            for group in groups.values():
                group.accumulate()
            for action in program.actions:
                self._train_action(action, micro_batches, objective, mailbox)
            mailbox.close()
            for group in groups.values():
                group.reduce()
        except BaseException:
            self._is_aborted = True
            # Whoever catches this may load other weights; whole ones that stayed behind would hide them.
            self._abandon()
            raise

    def record_next(self) -> None:
        """Time the actions of the next call of ``train``."""
        self._records_next = True

    def recorded(self, *, step: int) -> str | None:
        """What was timed last, as the content of a recording; ``None`` on all but the first rank. Collective.

        Args:
            step: number of the optimizer step, to be written into it.
        """
        assert self._clock is not None, "record_next() comes before the step"
        ranks: list[Any] = [None] * self._links.size
        dist.all_gather_object(ranks, self._clock.timed(), group=self._links.group)
        self._clock = None
        if self._pipeline.rank > 0:
            return None
        plan = self._pipeline.plan
        n_micro_batches = sum(timed.action.kind is ActionKind.FORWARD for rank in ranks for timed in rank) // len(plan)
        timeline = Timeline(tuple(ranks), plan.rank_of)
        return render_recording(Recording(self._pipeline.schedule.name, n_micro_batches, step, timeline))

    def forward(self, micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, dict[OutputName, Tensor]]]:
        """Each micro-batch with its outputs, padding removed, without gradients, the same on every rank. Collective.

        Raises:
            TrainingError: as ``train`` does.
        """
        program = self._programs.forward_only(len(micro_batches))
        mailbox = self._open(program, micro_batches, is_training=False)
        outputs: dict[int, dict[OutputName, Tensor]] = {}
        try:
            for action in program.actions:
                passes = self._passes[action.stage]
                x = None if passes.is_first else mailbox.take(Message(action.stage, False, action.micro_batch))
                out = passes.infer(x, micro_batches[action.micro_batch])
                if isinstance(out, dict):
                    outputs[action.micro_batch] = out
                else:
                    self._hand_on(action, out, mailbox)
            mailbox.close()
            shared = self._share(outputs, micro_batches)
        except BaseException:
            self._is_aborted = True
            raise
        finally:
            self._abandon()
        yield from zip(micro_batches, shared, strict=True)

    @torch.no_grad()
    def pass_through(self, x: Tensor, packed: PackedSequences) -> dict[OutputName, Tensor]:
        """One forward pass through all stages, on whole token ids [T]; the outputs on every rank. Collective."""
        plan, rank = self._pipeline.plan, self._pipeline.rank
        rows = x.shape[0]
        outputs: dict[OutputName, Tensor] = {}
        for stage, holder in enumerate(plan.rank_of):
            if holder != rank:
                continue
            if stage > 0 and plan.rank_of[stage - 1] != rank:
                x = torch.empty((rows, self._pipeline.width), dtype=self._pipeline.dtype, device=self._pipeline.device)
                self._links.receive(x, plan.rank_of[stage - 1]).wait()
            out = self._passes[stage].module(x, packed)
            if isinstance(out, dict):
                outputs = out
            elif plan.rank_of[stage + 1] != rank:
                self._links.send(out.contiguous(), plan.rank_of[stage + 1]).wait()
            else:
                x = out
        head = packed.head
        assert head is not None, "a forward pass through all stages ends in a head"
        return self._broadcast(head.outputs, outputs, rows if head.positions is None else len(head.positions))

    def _train_action(
        self, action: Action, micro_batches: Sequence[MicroBatch], objective: Objective, mailbox: Mailbox
    ) -> None:
        passes, number = self._passes[action.stage], action.micro_batch
        is_forward = action.kind is ActionKind.FORWARD
        needs_nothing = action.kind is ActionKind.BACKWARD_WEIGHT or (passes.is_first if is_forward else passes.is_last)
        given = None if needs_nothing else mailbox.take(Message(action.stage, not is_forward, number))
        if self._clock is not None:
            self._clock.begin()
        result: Tensor | None = None
        match action.kind:
            case ActionKind.FORWARD:
                result = passes.forward(number, given, micro_batches[number], objective)
            case ActionKind.BACKWARD:
                result = passes.backward(number, given)
            case ActionKind.BACKWARD_INPUT:
                result = passes.backward_input(number, given)
            case ActionKind.BACKWARD_WEIGHT:
                passes.backward_weight(number)
        if self._clock is not None:
            self._clock.end(action)
        if result is not None:
            self._hand_on(action, result, mailbox)
        if self._pipeline.reduce_each and action.kind in (ActionKind.BACKWARD, ActionKind.BACKWARD_WEIGHT):
            stage = self._pipeline.groups[action.stage]
            stage.reduce(free=stage.frees_weights)
            stage.accumulate()

    def _hand_on(self, action: Action, result: Tensor, mailbox: Mailbox) -> None:
        plan = self._pipeline.plan
        message = result_of(action, len(plan))
        assert message is not None, f"{action} gives nothing to another stage"
        to = plan.rank_of[message.to_stage]
        if to == self._pipeline.rank:
            mailbox.put(message, result)
        else:
            mailbox.send(message, result, to)

    def _open(self, program: RankProgram, micro_batches: Sequence[MicroBatch], *, is_training: bool) -> Mailbox:
        """Agree with the other ranks on what will be sent. Collective."""
        if self._is_aborted:
            raise TrainingError(
                "pipeline: found an earlier step that was aborted, whose messages are still under way; build a new "
                "engine and load a checkpoint"
            )
        pipeline = self._pipeline
        [ids] = {len(micro_batch.input_ids) for micro_batch in micro_batches}
        header = Header(
            len(micro_batches),
            ids // pipeline.tensor_ranks,
            pipeline.width,
            pipeline.dtype.itemsize,
            is_training,
            program.fingerprint,
        )
        self._links.check(header)
        return Mailbox(self._links, program.incoming, header, pipeline.dtype, pipeline.device)

    def _share(
        self, outputs: dict[int, dict[OutputName, Tensor]], micro_batches: Sequence[MicroBatch]
    ) -> list[dict[OutputName, Tensor]]:
        """The last stage's outputs on every rank, all micro-batches in one message per name."""
        head = micro_batches[0].packed.head
        assert head is not None, "micro-batches say what is wanted"
        joined = (
            {name: torch.cat([outputs[n][name] for n in range(len(micro_batches))]) for name in head.outputs}
            if outputs
            else {}
        )
        sizes = [micro_batch.batch.n_tokens for micro_batch in micro_batches]
        whole = self._broadcast(head.outputs, joined, sum(sizes))
        parts = {name: tensor.split(sizes) for name, tensor in whole.items()}
        return [{name: parts[name][number] for name in parts} for number in range(len(micro_batches))]

    def _broadcast(
        self, names: Sequence[OutputName], outputs: dict[OutputName, Tensor], rows: int
    ) -> dict[OutputName, Tensor]:
        """The last stage's outputs [rows, ...] on every rank."""
        source = self._pipeline.plan.last_rank
        if unknown := [name for name in names if name not in self._forms]:
            forms: Any = {name: (tuple(outputs[name].shape[1:]), outputs[name].dtype) for name in unknown if outputs}
            self._forms |= self._links.broadcast_object(forms, source)
        for name in names:
            if name not in outputs:
                shape, dtype = self._forms[name]
                outputs[name] = torch.empty((rows, *shape), dtype=dtype, device=self._pipeline.device)
            outputs[name] = outputs[name].contiguous()
            self._links.broadcast(outputs[name], source)
        return {name: outputs[name] for name in names}

    def _abandon(self) -> None:
        """Free whole weights, and what passes left behind."""
        for group in self._pipeline.groups.values():
            group.end_forward_passes()
        for passes in self._passes.values():
            passes.clear()
