"""The pipelined runner: executes the actions of a schedule on the stages of this process.

It replaces torch's schedule objects, which fix the number and length of micro-batches at construction, run no forward
passes alone for every schedule, and record no timeline.
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
from archon_engine.profiling.ranges import profiled_range
from archon_pipeline.channels import Header, Links, Mailbox
from archon_pipeline.clock import ActionClock
from archon_pipeline.program import Message, Programs, RankProgram, message_of
from archon_pipeline.recording import Recording, render_recording
from archon_pipeline.stage_passes import StagePasses
from archon_pipeline.timeline import Timeline


class PipelinedRunner:
    """Runs micro-batches through the stages of a pipeline (``archon_core.contracts.pipeline.Runner``).

    Args:
        pipeline: this process's part of the pipeline.
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
        self._output_formats: dict[OutputName, tuple[tuple[int, ...], torch.dtype]] = {}

    def train(self, micro_batches: Sequence[MicroBatch], objective: Objective) -> None:
        """Accumulate the gradients of the sum of ``objective`` over all micro-batches. Collective.

        The objective is called only on the rank that holds the last stage.

        Raises:
            TrainingError: ranks have different micro-batches, a stage returns another shape or dtype than announced, or
                an earlier step was aborted.
            PluginError: the action lists of the schedule cannot be executed.
        """
        program = self._programs.training(len(micro_batches))
        mailbox = self._open_mailbox(program, micro_batches, is_training=True)
        groups = self._pipeline.groups
        self._clock = ActionClock(self._pipeline.device) if self._records_next else None
        self._records_next = False
        try:
            # Gradients are reduced once, at the end of the step, not in the hooks of every backward pass: data ranks
            # would otherwise run one reduction per micro-batch, and split backward passes do not run the hook that ends
            # a reduction.
            for group in groups.values():
                group.accumulate()
            for action in program.actions:
                self._train_action(action, micro_batches, objective, mailbox)
            mailbox.close()
            with profiled_range("reduce gradients"):
                for group in groups.values():
                    group.reduce()
        except BaseException:
            self._is_aborted = True
            # The caller may load other weights; unsharded ones that stay behind would hide them.
            self._release()
            raise

    def record_next(self) -> None:
        """Record the actions of the next call of ``train``."""
        self._records_next = True

    def recorded(self, *, step: int) -> str | None:
        """The last measured step as the content of a recording; ``None`` except on the first rank. Collective.

        Args:
            step: number of the optimizer step, part of the recording.
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
        """Yield each micro-batch with its outputs, padding removed, without gradients; equal on every rank. Collective.

        All passes run before the first result.

        Raises:
            TrainingError: as in ``train``.
        """
        program = self._programs.forward_only(len(micro_batches))
        mailbox = self._open_mailbox(program, micro_batches, is_training=False)
        outputs: dict[int, dict[OutputName, Tensor]] = {}
        try:
            for action in program.actions:
                passes = self._passes[action.stage]
                x = None if passes.is_first else mailbox.take(Message(action.stage, False, action.micro_batch))
                with profiled_range(action):
                    out = passes.infer(x, micro_batches[action.micro_batch])
                if isinstance(out, dict):
                    outputs[action.micro_batch] = out
                else:
                    self._deliver(action, out, mailbox)
            mailbox.close()
            shared = self._share_outputs(outputs, micro_batches)
        except BaseException:
            self._is_aborted = True
            raise
        finally:
            self._release()
        yield from zip(micro_batches, shared, strict=True)

    @torch.no_grad()
    def pass_through(self, x: Tensor, packed: PackedSequences) -> dict[OutputName, Tensor]:
        """One forward pass through all stages on whole token ids [T]; returns the outputs on every rank. Collective.

        Used by generation. It compares no header: all ranks derive the shapes from the same prompts.
        """
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
        assert head is not None, "the packed sequences of a forward pass request outputs"
        return self._broadcast(head.outputs, outputs, rows if head.positions is None else len(head.positions))

    def _train_action(
        self, action: Action, micro_batches: Sequence[MicroBatch], objective: Objective, mailbox: Mailbox
    ) -> None:
        passes, number = self._passes[action.stage], action.micro_batch
        is_forward = action.kind is ActionKind.FORWARD
        # Only results of other stages are messages: the first stage starts from token ids, the last one's backward from
        # the objective, and W from the state that action I left behind.
        needs_nothing = action.kind is ActionKind.BACKWARD_WEIGHT or (passes.is_first if is_forward else passes.is_last)
        given = None if needs_nothing else mailbox.take(Message(action.stage, not is_forward, number))
        # After the message has arrived, so that waiting for it does not count as work.
        if self._clock is not None:
            self._clock.begin()
        result: Tensor | None = None
        with profiled_range(action):
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
            self._deliver(action, result, mailbox)
        if self._pipeline.reduce_each and action.kind in (ActionKind.BACKWARD, ActionKind.BACKWARD_WEIGHT):
            # Only the end of a backward pass completes the gradients of a micro-batch; I does not. Every data rank of
            # the stage runs the same actions in the same order, so the collective matches.
            stage = self._pipeline.groups[action.stage]
            stage.reduce(free=stage.frees_weights)
            stage.accumulate()

    def _deliver(self, action: Action, result: Tensor, mailbox: Mailbox) -> None:
        plan = self._pipeline.plan
        message = message_of(action, len(plan))
        assert message is not None, f"{action} has no result for another stage"
        to = plan.rank_of[message.to_stage]
        if to == self._pipeline.rank:
            mailbox.put(message, result)
        else:
            mailbox.send(message, result, to)

    def _open_mailbox(self, program: RankProgram, micro_batches: Sequence[MicroBatch], *, is_training: bool) -> Mailbox:
        """Compare headers with the other ranks and post the first receives. Collective."""
        if self._is_aborted:
            raise TrainingError(
                "pipeline: found an earlier step that was aborted; its messages are still in flight and would be taken "
                "for those of this step; build a new engine and load a checkpoint"
            )
        pipeline = self._pipeline
        # One shape per step, so that messages need no metadata; the engine pads micro-batches to it.
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

    def _share_outputs(
        self, outputs: dict[int, dict[OutputName, Tensor]], micro_batches: Sequence[MicroBatch]
    ) -> list[dict[OutputName, Tensor]]:
        """Broadcast the outputs of the last stage: one message per output name, for all micro-batches together."""
        head = micro_batches[0].packed.head
        assert head is not None, "micro-batches request outputs"
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
        """Broadcast the outputs [rows, ...] of the last stage from the rank that holds it."""
        source = self._pipeline.plan.last_rank
        # Shapes behind rows and dtypes depend on the head alone: exchanged once per output name, on all ranks in the
        # same call, since all of them ask for the same names.
        if unknown := [name for name in names if name not in self._output_formats]:
            formats: Any = {name: (tuple(outputs[name].shape[1:]), outputs[name].dtype) for name in unknown if outputs}
            self._output_formats |= self._links.broadcast_object(formats, source)
        for name in names:
            if name not in outputs:
                shape, dtype = self._output_formats[name]
                outputs[name] = torch.empty((rows, *shape), dtype=dtype, device=self._pipeline.device)
            outputs[name] = outputs[name].contiguous()
            self._links.broadcast(outputs[name], source)
        return {name: outputs[name] for name in names}

    def _release(self) -> None:
        """Free unsharded weights and the state of unfinished micro-batches."""
        for group in self._pipeline.groups.values():
            group.end_forward_passes()
        for passes in self._passes.values():
            passes.clear()
