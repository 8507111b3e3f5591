"""An answer, or violated constraints, as JSON data. Bytes and seconds are those of the planning functions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from archon_plan.answer import Answer, EngineAnswer, Refused
from archon_plan.placement import find_placement


def answer_data(answer: Answer) -> dict[str, Any]:
    """The answer as JSON data."""
    request = answer.request
    return {
        "title": request.title,
        "fits": answer.fits,
        "shortfall_bytes": max(answer.shortfall, 0),
        "device": {
            "name": answer.device.name,
            "memory_bytes": answer.device.memory,
            "figures": {name: {"value": value, "source": source} for name, value, source in answer.device.rows()},
        },
        "engines": [_engine(answer, engine) for engine in answer.engines],
        "rollout": str(request.rollout) if request.rollout else None,
        "decisions": [asdict(decision) for decision in request.decisions],
        "notes": list(request.notes),
    }


def _engine(answer: Answer, engine: EngineAnswer) -> dict[str, Any]:
    plan, setting = engine.plan, engine.plan.setting
    dims = setting.dims
    return {
        "role": plan.role,
        "layout": plan.request.layout,
        "model": plan.request.model.name,
        "parameters": setting.anatomy.n_parameters,
        "world_size": dims.world_size,
        "axes": {**asdict(dims), "edp": dims.edp},
        "tokens": asdict(setting.tokens),
        "bytes_per_number": asdict(setting.types),
        "schedule": setting.schedule.name if setting.schedule else None,
        "checkpointing": setting.checkpointing,
        "optimizer": setting.optimizer if setting.trains else None,
        "pipeline": [
            {
                "pipeline_rank": rank.number,
                "ranks": [rank.ranks.start, rank.ranks.stop - 1],
                "stages": [{"stage": number, "layers": list(layers)} for number, layers in rank.stages],
                "embedding": rank.has_embed,
                "head": rank.has_head,
                "parameters": rank.parameters,
            }
            for rank in find_placement(setting).pipeline
        ],
        "memory": [
            {
                "pipeline_rank": memory.pipeline_rank,
                "total_bytes": memory.total,
                "parts": [{"name": part.name, "bytes": part.bytes, "note": part.note} for part in memory.parts],
            }
            for memory in engine.memory
        ],
        "peak_bytes": answer.peak(engine),
        "traffic": [asdict(transfer) for transfer in engine.transfers],
        "time": asdict(engine.time),
        "decisions": [asdict(decision) for decision in plan.decisions],
        "notes": list(plan.notes),
    }


def refused_data(refused: Refused) -> dict[str, Any]:
    """Violated constraints as JSON data."""
    return {
        "title": refused.request.title,
        "fits": False,
        "violations": [
            {
                "role": refusal.request.role,
                "option": violation.option,
                "found": violation.found,
                "allowed": violation.allowed,
                "fix": violation.fix,
                "nearest": list(refusal.nearest),
            }
            for refusal in refused.engines
            for violation in refusal.violations
        ],
        "problems": list(refused.problems),
    }
