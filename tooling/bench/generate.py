"""Tokens per second of the local rollout engine against transformers' ``generate``: same model, same batch, one run.

Both sample at temperature 1 until every completion has all its tokens. Repetitions alternate, so that a busy machine
slows both, and medians are compared; transformers counts with the faster of its caches. Exits 1 when a ratio is below
the bar.

    hatch run bench-generate [--new-tokens 64] [--repetitions 5] [--dtype float32] [--threads N] [--profile]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from records import Figure, Measurement
from report import Report, add_json_option

BAR = 1.0

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
    """Prompts by their lengths, and how many completions each gets."""

    name: str
    prompt_lengths: tuple[int, ...]
    n_samples: int

    @property
    def n_sequences(self) -> int:
        return len(self.prompt_lengths) * self.n_samples


WORKLOADS = (
    Workload("64 prompts x 1 sample", (16,) * 64, 1),
    Workload("16 ragged prompts x 8 samples", tuple(8 + 7 * (i % 9) for i in range(16)), 8),
)

Generate = Callable[[], int]
"""Generates a workload once and returns the number of new tokens."""


def prompts_of(workload: Workload) -> list[list[int]]:
    """Random token ids, the same in every run."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, MODEL["vocab_size"], (n,), generator=generator).tolist() for n in workload.prompt_lengths]


def with_archon(folder: str, workload: Workload, new_tokens: int, dtype: str) -> Generate:
    """Generation by the local engine on the Archon engine's module."""
    from archon_core import assemble
    from archon_core.contracts.engine_config import EngineConfig
    from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
    from archon_core.plugins import InferenceEngineSpec, registry

    trainer = assemble(EngineConfig(path=folder, dtype=dtype, optimizer=None))
    trainer.initialize()
    engine = registry().get(InferenceEngineSpec, "local").load()(RolloutConfig(), trainer=trainer)
    config = GenerationConfig(n_samples=workload.n_samples, max_new_tokens=new_tokens)
    requests = [
        GenerationRequest(tuple(prompt), config, tuple(range(i * config.n_samples, (i + 1) * config.n_samples)))
        for i, prompt in enumerate(prompts_of(workload))
    ]
    return lambda: sum(len(c.token_ids) for completions in engine.generate(requests) for c in completions)


def with_transformers(folder: str, workload: Workload, new_tokens: int, dtype: str, cache: str) -> Generate:
    """Generation by ``transformers`` with one of its caches; prompts are padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    prompts = prompts_of(workload)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def generate() -> int:
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=workload.n_samples,
            max_new_tokens=new_tokens,
            cache_implementation=cache,
            eos_token_id=None,
            pad_token_id=0,
        )
        return (output.shape[1] - longest) * output.shape[0]

    return generate


def measure(contestants: dict[str, Generate], repetitions: int, expected_tokens: int) -> dict[str, float]:
    """Median tokens per second of each, after one untimed run, taking turns."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repetitions + 1):
        for name, generate in contestants.items():
            start = time.perf_counter()
            n_tokens = generate()
            seconds = time.perf_counter() - start
            assert n_tokens == expected_tokens, f"{name}: {n_tokens} tokens instead of {expected_tokens}"
            if repetition > 0:
                rates[name].append(n_tokens / seconds)
    return {name: statistics.median(found) for name, found in rates.items()}


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
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--threads", type=int, help="CPU threads; by default as many as torch chooses")
    parser.add_argument("--profile", action="store_true", help="show the local engine's operations and stop")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    report = Report("generate", None if options.profile else options.json)
    with tempfile.TemporaryDirectory() as folder:
        n_parameters = save_model(folder)
        print(f"Qwen3, {n_parameters / 1e6:.1f}M parameters, {options.dtype}, {options.new_tokens} new tokens each")
        for workload in WORKLOADS:
            ours = with_archon(folder, workload, options.new_tokens, options.dtype)
            if options.profile:
                profile(ours)
                continue
            contestants = {"archon local": ours}
            for cache in ("dynamic", "static"):
                contestants[f"transformers, {cache} cache"] = with_transformers(
                    folder, workload, options.new_tokens, options.dtype, cache
                )
            rates = measure(contestants, options.repetitions, workload.n_sequences * options.new_tokens)
            ours = rates.pop("archon local")
            rival = max(rates, key=rates.__getitem__)
            report.add(
                Measurement(
                    workload.name,
                    ours / rates[rival],
                    "higher",
                    Figure(ours, "tokens/s"),
                    Figure(rates[rival], "tokens/s"),
                    rival,
                    options.repetitions,
                    bar=BAR,
                )
            )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
