"""Tokens per second of the local rollout engine against transformers' ``generate``: same model, same batch, one run.

    hatch run bench-generate [--repetitions 5] [--dtype float32] [--threads 2] [--profile] [--json FILE]

Both sample at temperature 1 until every completion has all its tokens. In the ragged workload, lengths differ by
completion: transformers gets them by a logits processor that forces the end token there, and goes on until the longest
completion has ended; Archon gets them as the limit of the sample. Only tokens of completions count.

Repetitions alternate, and the medians are compared; transformers counts with the faster of its caches. Exits 1 when a
ratio is below its bar.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from records import Figure, Measurement
from report import Report, add_json_option

ARCHON = "archon local"
END = 0
"""The end token of ragged workloads; prompts do not contain it."""

MODEL = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
"""A Qwen3 of 3.7 million parameters."""


@dataclass(frozen=True)
class Workload:
    """Prompts by their lengths, and their completions.

    Attributes:
        name: for tables.
        prompt_lengths: one per prompt.
        n_samples: completions per prompt.
        new_tokens: of a completion, at most.
        bar: the least ratio.
        median: of the completions' lengths; ``None`` if all have ``new_tokens``.
    """

    name: str
    prompt_lengths: tuple[int, ...]
    n_samples: int
    new_tokens: int
    bar: float
    median: int | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every completion, prompt by prompt."""
        import torch

        n = len(self.prompt_lengths) * self.n_samples
        if self.median is None:
            return (self.new_tokens,) * n
        generator = torch.Generator().manual_seed(3)
        drawn = torch.exp(math.log(self.median) + torch.randn(n, generator=generator, dtype=torch.float64) * 0.8)
        return tuple(int(length) for length in drawn.clamp(4, self.new_tokens))


WORKLOADS = (
    Workload("32 prompts x 1 sample, 16 tokens", (16,) * 32, 1, 16, 1.2),
    Workload("64 prompts x 1 sample, 64 tokens", (16,) * 64, 1, 64, 1.5),
    Workload("16 ragged prompts x 8 samples, 64 tokens", tuple(8 + 7 * (i % 9) for i in range(16)), 8, 64, 1.5),
    Workload("8 prompts x 8 samples, 4 to 256 tokens", (16,) * 8, 8, 256, 1.5, median=48),
)

Generate = Callable[[], int]
"""Generates a workload once and returns the number of new tokens."""


def prompts_of(workload: Workload) -> list[list[int]]:
    """Random token ids, the same in every run."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, MODEL["vocab_size"], (n,), generator=generator).tolist() for n in workload.prompt_lengths]


def with_archon(folder: str, workload: Workload, dtype: str) -> Generate:
    """Generation by the local engine on the Archon engine's module.

    Ragged samples of a prompt share its prefill as others do: each sample's limit is set in its request's samples.
    """
    from archon_core import assemble
    from archon_core.contracts.engine_config import EngineConfig
    from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
    from archon_core.plugins import InferenceEngineSpec, registry
    from archon_rollout import local_engine

    trainer = assemble(EngineConfig(path=folder, dtype=dtype, optimizer=None))
    trainer.initialize()
    engine = registry().get(InferenceEngineSpec, "local").load()(RolloutConfig(), trainer=trainer)
    config = GenerationConfig(n_samples=workload.n_samples, max_new_tokens=workload.new_tokens)
    requests = [
        GenerationRequest(tuple(prompt), config, tuple(range(i * config.n_samples, (i + 1) * config.n_samples)))
        for i, prompt in enumerate(prompts_of(workload))
    ]
    limits, samples_of = workload.lengths, local_engine.samples_of

    def limited(index: int, request: GenerationRequest, **options: bool) -> list[Any]:
        samples = samples_of(index, request, **options)
        return [replace(one, limit=limits[index * config.n_samples + one.number]) for one in samples]

    def generate() -> int:
        local_engine.samples_of = limited
        try:
            return sum(len(c.token_ids) for completions in engine.generate(requests) for c in completions)
        finally:
            local_engine.samples_of = samples_of

    return generate


def with_transformers(folder: str, workload: Workload, dtype: str, cache: str) -> Generate:
    """Generation by ``transformers`` with one of its caches; prompts are padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM, LogitsProcessorList

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    prompts = prompts_of(workload)
    longest = max(map(len, prompts))
    is_ragged, lengths = workload.median is not None, torch.tensor(workload.lengths)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def end_at_lengths(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, END] = -torch.inf
        last = lengths == ids.shape[1] - longest + 1
        if last.any():
            scores[last] = -torch.inf
            scores[last, END] = 0.0
        return scores

    def generate() -> int:
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=workload.n_samples,
            max_new_tokens=workload.new_tokens,
            cache_implementation=cache,
            eos_token_id=END if is_ragged else None,
            pad_token_id=END,
            logits_processor=LogitsProcessorList([end_at_lengths] if is_ragged else []),
        )
        assert output.shape[1] - longest == max(workload.lengths), "a completion has another length"
        return sum(workload.lengths)

    return generate


def measure(contestants: dict[str, Generate], repetitions: int, expected_tokens: int) -> dict[str, float]:
    """Tokens per second of each, the median after one untimed run, taking turns."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repetitions + 1):
        for name, generate in contestants.items():
            start = time.perf_counter()
            n_tokens = generate()
            seconds = time.perf_counter() - start
            assert n_tokens == expected_tokens, f"{name}: {n_tokens} tokens instead of {expected_tokens}"
            if repetition > 0:
                rates[name].append(n_tokens / seconds)
    return {name: median(found) for name, found in rates.items()}


def save_model(folder: str) -> int:
    """Write the random model as a checkpoint folder and return its number of parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**MODEL))
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def profile(generate: Generate) -> None:
    """Print where one run spends its time, by operation."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    generate()
    with record(activities=[ProfilerActivity.CPU]) as recorded:
        generate()
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when every ratio reaches the bar, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--only", type=int, action="append", metavar="N", help="number of a workload, from 0 [all]")
    parser.add_argument("--profile", action="store_true", help="show the local engine's operations and stop")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(options.threads)
    report = Report("generate", None if options.profile else options.json)
    with tempfile.TemporaryDirectory() as folder:
        n_parameters = save_model(folder)
        print(f"Qwen3, {n_parameters / 1e6:.1f}M parameters, {options.dtype}")
        for workload in [WORKLOADS[n] for n in options.only or range(len(WORKLOADS))]:
            ours = with_archon(folder, workload, options.dtype)
            if options.profile:
                profile(ours)
                continue
            contestants = {ARCHON: ours}
            for cache in ("dynamic", "static"):
                contestants[f"transformers, {cache} cache"] = with_transformers(folder, workload, options.dtype, cache)
            rates = measure(contestants, options.repetitions, sum(workload.lengths))
            report.add(compared(workload, rates, options.repetitions))
    return report.finish()


def compared(workload: Workload, rates: Mapping[str, float], repetitions: int) -> Measurement:
    """Archon's rate against that of the faster cache."""
    rival = max((name for name in rates if name != ARCHON), key=rates.__getitem__)
    ours, theirs = (Figure(rates[name], "tokens/s") for name in (ARCHON, rival))
    return Measurement(
        workload.name, ours.value / theirs.value, "higher", ours, theirs, rival, repetitions, bar=workload.bar
    )


if __name__ == "__main__":
    sys.exit(main())
