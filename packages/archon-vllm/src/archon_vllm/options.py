"""The section ``vllm``: options of the server's command line, under AReaL's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, number, one_of, option

TRANSPORTS = ("shm", "distributed", "disk")
"""Weight transports, the preferred one first."""

ADAPTER_TRANSPORTS = ("disk",)
"""The transports with which vLLM loads adapters apart."""

DEVICES = {"tensor_parallel_size": "t", "pipeline_parallel_size": "p", "data_parallel_size": "d"}
"""vLLM's options that change the number of devices -> the letter of ``rollout.backend`` that says it."""


@dataclass
class VllmOptions:
    """Options of vLLM's command line, passed through. The number of devices comes from ``rollout.backend`` alone.

    Attributes:
        python: the interpreter of the environment that has vLLM and archon-vllm; empty for this one. vLLM's pins of
            torch and transformers usually need a separate environment.
        model: the served model; empty for the model that is trained.
        seed: seed of the server.
        skip_tokenizer_init: load no tokenizer. Archon sends token ids only, so servers of models without a tokenizer
            never load one.
        enforce_eager: capture no CUDA graphs.
        dtype: dtype of weights and activations; ``auto`` for the trainer's compute dtype.
        distributed_executor_backend: how vLLM starts its ranks.
        max_num_seqs: maximum number of sequences in a batch. A run keeps slightly fewer in progress on each server,
            which leaves room for probes and canaries.
        block_size: tokens per block of the KV cache; null to let vLLM choose, which the CPU needs.
        cpu_offload_gb: GiB of weights to keep in host memory.
        disable_sliding_window: ignore the model's sliding window.
        max_model_len: maximum length of prompt and completion, at most the model's; null for the model's.
        no_enable_chunked_prefill: prefill each prompt in one batch.
        no_enable_prefix_caching: keep no prefixes in the KV cache. Every update empties the cache.
        gpu_memory_utilization: share of the GPU's memory that the server uses.
        worker_extension_cls: must stay empty: archon-vllm sets its class.
        enable_sleep_mode: allow the server to release its memory.
        uvicorn_log_level: log level of the HTTP server.
        gdn_prefill_backend: kernels of gated delta networks.
        enable_lora: serve LoRA adapters.
        max_lora_rank: largest rank of an adapter.
        max_loras: adapters in one batch and in memory, with ``rollout.use_lora`` at least
            ``rollout.max_head_offpolicyness`` + 2.
        lora_modules: adapters to load at the start.
        allow_experts: publish mixtures of experts, although vLLM 0.32 loads experts wrongly when it gets new weights
            (measured on a CPU), by less than the canary's tolerance in bfloat16. First check this vLLM with float32
            weights, in which the canary finds it.
        tensor_parallel_size: must stay null: ``t`` of ``rollout.backend``.
        pipeline_parallel_size: must stay null: ``p`` of ``rollout.backend``.
        data_parallel_size: must stay null: ``d`` of ``rollout.backend``, the number of servers.
    """

    python: str = ""
    model: str = ""
    seed: int = option(1, NOT_NEGATIVE)
    skip_tokenizer_init: bool = False
    enforce_eager: bool = False
    dtype: str = "auto"
    distributed_executor_backend: str = "mp"
    max_num_seqs: int = option(256, POSITIVE)
    block_size: int | None = option(16, POSITIVE)
    cpu_offload_gb: float = option(0, NOT_NEGATIVE)
    disable_sliding_window: bool = True
    max_model_len: int | None = option(32768, POSITIVE)
    no_enable_chunked_prefill: bool = False
    no_enable_prefix_caching: bool = True
    gpu_memory_utilization: float = option(0.9, number(above=0, most=1))
    worker_extension_cls: str = ""
    enable_sleep_mode: bool = False
    uvicorn_log_level: str = option("warning", one_of("critical", "error", "warning", "info", "debug", "trace"))
    gdn_prefill_backend: str | None = option(None, one_of("triton", "flashinfer"))
    enable_lora: bool = False
    max_lora_rank: int = option(16, POSITIVE)
    max_loras: int = option(8, POSITIVE)
    lora_modules: list[str] | None = None
    allow_experts: bool = False
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Options that conflict with Archon."""
        for name, letter in DEVICES.items():
            if (value := getattr(self, name)) is not None:
                yield (
                    name,
                    f"found {value}; allowed is null, because devices are counted in one place; write it in "
                    f"rollout.backend, such as vllm:{'' if letter == 'd' else 'd1'}{letter}{value}",
                )
        if self.worker_extension_cls:
            yield (
                "worker_extension_cls",
                f"found {self.worker_extension_cls!r}; allowed is an empty text, because archon-vllm sets its class; "
                "remove the option",
            )


NOT_PASSED = frozenset(
    {"python", "model", "dtype", "max_model_len", "skip_tokenizer_init", "worker_extension_cls", "allow_experts"}
    | {"max_lora_rank", "max_loras", "lora_modules", *DEVICES}
)
"""Options that ``command_options`` does not pass one by one."""


def command_options(options: VllmOptions) -> list[str]:
    """The options as arguments of ``vllm serve``. Null, false and empty values are left out."""
    arguments: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in NOT_PASSED or value is None or value is False or value == "":
            continue
        flag = "--" + field.name.replace("_", "-")
        arguments += [flag] if value is True else [flag, str(value)]
    if options.enable_lora:
        arguments += ["--max-lora-rank", str(options.max_lora_rank), "--max-loras", str(options.max_loras)]
        arguments += ["--lora-modules", *options.lora_modules] if options.lora_modules else []
    return arguments
