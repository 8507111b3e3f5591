"""Memory of a device while it samples: of a server, or of a rank of the trainer."""

from __future__ import annotations

from archon_plan.answer import Answer
from archon_plan.results import MemoryPart, RankMemory
from archon_plan.rl import RLPlan

OVERHEAD = frozenset({"context", "communicators"})
"""Parts of an engine's memory outside of tensors, which stay while the trainer's ranks sample."""


def sampling_memory(plan: RLPlan, answer: Answer) -> RankMemory:
    """Memory of the fullest device while it samples.

    Servers fill their share of the memory with KV cache. Ranks of the trainer keep weights and optimizers of all
    engines beside the gathered weights, and their KV cache grows with the sequences: at most, all that run together
    have the longest prompt and completion.
    """
    run, fleet = plan.run, plan.fleet
    server = run.server
    weights = MemoryPart(
        "weights", server.weights, f"shared by {server.n_devices} devices" if server.n_devices > 1 else ""
    )
    if not run.colocated:
        device = run.server_device or answer.device
        share = device.memory * server.memory_share - server.reserved - server.weights
        note = f"room for {fleet.places:,} sequences of {run.samples.context:,.0f} tokens, the mean while they run"
        parts = [weights, MemoryPart("KV cache", max(share, 0.0), note)]
        if server.reserved:
            parts.append(MemoryPart("new weights", server.reserved, "beside the old ones"))
        return RankMemory(0, tuple(parts))
    actor = answer.engines[0]
    engines = answer.sharing(actor)
    kept = [MemoryPart(engine.plan.role, engine.resident, "parameters and optimizer states") for engine in engines]
    overhead = sum(part.bytes for part in actor.fullest.parts if part.name in OVERHEAD)
    sequences = min(-(-run.samples.sequences // run.servers), server.max_sequences or run.samples.sequences)
    longest = run.samples.prompt_tokens + run.samples.lengths.limit
    cache = MemoryPart(
        "KV cache", server.cached(sequences * longest, sequences), f"{sequences:,} sequences of {longest:,.0f} tokens"
    )
    gathered = MemoryPart("gathered weights", weights.bytes, weights.note)
    return RankMemory(0, (*kept, gathered, cache, MemoryPart("overhead", overhead, "context and communicators")))
