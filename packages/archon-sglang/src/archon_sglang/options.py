"""The section ``sglang``: options of the server's command line, under AReaL's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, number, option
from archon_core.layout import Layout

REMOVED = (
    "enable_ep_moe",
    "torchao_config",
    "enable_nan_detection",
    "enable_multithread_load",
)
"""Options of AReaL that SGLang 0.5.23 no longer has."""

RENAMED = {"cuda_graph_max_bs": "cuda_graph_max_bs_decode", "cuda_graph_bs": "cuda_graph_bs_decode"}
"""Options of AReaL -> their names in SGLang 0.5.23."""


DEVICES = ("tp_size", "pp_size", "nnodes")
"""SGLang's options that change the number of devices."""


@dataclass
class SglangOptions:
    """Options of SGLang's command line, passed through. The number of devices comes from ``rollout.backend`` alone.

    Attributes:
        python: the interpreter of the environment that has SGLang; empty for this one.
        model_path: the served model; empty for the model that is trained.
        random_seed: seed of the server.
        skip_tokenizer_init: load no tokenizer. Archon sends token ids only, so servers of models without a tokenizer
            never load one.
        disable_cuda_graph: capture no CUDA graphs.
        disable_radix_cache: keep no prefixes in the KV cache.
        disable_cuda_graph_padding: use CUDA graphs only for batches that need no padding.
        enable_nccl_nvls: use NVLink SHARP for large prefills.
        disable_outlines_disk_cache: keep no cache of grammars on disk.
        disable_custom_all_reduce: use NCCL's all-reduce.
        disable_overlap_schedule: do not overlap scheduling with computation.
        enable_mixed_chunk: mix prefill and decode in a batch.
        enable_dp_attention: data-parallel attention among the ranks of a server; ``dp_size`` divides them.
        enable_ep_moe: removed in SGLang 0.5.23; use ``ep_size``.
        enable_torch_compile: compile the model.
        torch_compile_max_bs: largest compiled batch.
        cuda_graph_max_bs: largest batch with a CUDA graph for decoding; null to let SGLang choose.
        cuda_graph_bs: batch sizes with a CUDA graph for decoding; null to let SGLang choose.
        torchao_config: removed in SGLang 0.5.23.
        enable_nan_detection: removed in SGLang 0.5.23.
        enable_p2p_check: check peer access between GPUs.
        triton_attention_reduce_in_fp32: reduce attention in float32.
        triton_attention_num_kv_splits: KV splits of the Triton decode kernel.
        num_continuous_decode_steps: decode steps between two schedules.
        load_format: format of the weights.
        enable_memory_saver: allow the server to release its memory.
        allow_auto_truncate: shorten prompts that are too long.
        attention_backend: kernels of attention; null to let SGLang choose.
        enable_deterministic_inference: batch-invariant kernels; requests then carry their seeds.
        enable_multimodal: serve images and video.
        sampling_backend: kernels of sampling; null to let SGLang choose.
        context_length: maximum length of prompt and completion; null for the model's.
        mem_fraction_static: share of the GPU's memory for weights and KV cache; null to let SGLang choose.
        max_running_requests: maximum number of sequences in a batch. If set, a run keeps slightly fewer in progress
            on each server, which leaves room for probes and canaries.
        chunked_prefill_size: tokens per prefill chunk; -1 for no chunks.
        max_prefill_tokens: tokens in a prefill batch.
        schedule_policy: order of waiting requests.
        schedule_conservativeness: how much memory the scheduler reserves per request.
        cpu_offload_gb: GiB of weights to keep in host memory.
        dtype: dtype of weights and activations; ``auto`` for the trainer's compute dtype.
        kv_cache_dtype: dtype of the KV cache.
        dp_size: data-parallel attention groups in a server; 1 without ``enable_dp_attention``.
        ep_size: ranks that share the experts of a layer; divides the ranks of a server.
        enable_lora: serve LoRA adapters.
        max_lora_rank: largest rank of an adapter.
        max_loaded_loras: adapters in host memory, with ``rollout.use_lora`` at least
            ``rollout.max_head_offpolicyness`` + 2.
        lora_paths: adapters to load at the start.
        lora_backend: kernels of LoRA.
        log_level: log level.
        log_level_http: log level of the HTTP server; null for ``log_level``.
        log_requests: log requests.
        log_requests_level: how much of a request is logged.
        show_time_cost: log the time of marked sections.
        enable_metrics: serve metrics for Prometheus.
        decode_log_interval: decode steps between two log lines.
        enable_multithread_load: removed in SGLang 0.5.23.
        enable_return_routed_experts: return the experts of every token; ``rollout.return_routed_experts`` sets it.
        tp_size: must stay null: ``t`` of ``rollout.backend``.
        pp_size: must stay null: servers have no pipelines.
        nnodes: must stay null: a server runs on one machine.
    """

    python: str = ""
    model_path: str = ""
    random_seed: int = option(1, NOT_NEGATIVE)
    skip_tokenizer_init: bool = False
    disable_cuda_graph: bool = False
    disable_radix_cache: bool = True
    disable_cuda_graph_padding: bool = False
    enable_nccl_nvls: bool = False
    disable_outlines_disk_cache: bool = False
    disable_custom_all_reduce: bool = False
    disable_overlap_schedule: bool = False
    enable_mixed_chunk: bool = False
    enable_dp_attention: bool = False
    enable_ep_moe: bool = False
    enable_torch_compile: bool = False
    torch_compile_max_bs: int = option(32, POSITIVE)
    cuda_graph_max_bs: int | None = option(None, POSITIVE)
    cuda_graph_bs: list[int] | None = None
    torchao_config: str = ""
    enable_nan_detection: bool = False
    enable_p2p_check: bool = False
    triton_attention_reduce_in_fp32: bool = False
    triton_attention_num_kv_splits: int = option(8, POSITIVE)
    num_continuous_decode_steps: int = option(1, POSITIVE)
    load_format: str = "auto"
    enable_memory_saver: bool = False
    allow_auto_truncate: bool = False
    attention_backend: str | None = "fa3"
    enable_deterministic_inference: bool = False
    enable_multimodal: bool = False
    sampling_backend: str | None = None
    context_length: int | None = option(32768, POSITIVE)
    mem_fraction_static: float | None = option(0.9, number(above=0, below=1))
    max_running_requests: int | None = option(None, POSITIVE)
    chunked_prefill_size: int | None = option(-1, number(least=-1))
    max_prefill_tokens: int = option(32768, POSITIVE)
    schedule_policy: str = "lpm"
    schedule_conservativeness: float = option(1.0, number(above=0))
    cpu_offload_gb: int = option(0, NOT_NEGATIVE)
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    dp_size: int = option(1, POSITIVE)
    ep_size: int = option(1, POSITIVE)
    enable_lora: bool | None = None
    max_lora_rank: int | None = option(None, POSITIVE)
    max_loaded_loras: int = option(8, POSITIVE)
    lora_paths: list[str] | None = None
    lora_backend: str = "triton"
    log_level: str = "warning"
    log_level_http: str | None = "warning"
    log_requests: bool = False
    log_requests_level: int = option(0, number(least=0, most=3))
    show_time_cost: bool = False
    enable_metrics: bool = True
    decode_log_interval: int = option(1, POSITIVE)
    enable_multithread_load: bool = False
    enable_return_routed_experts: bool = False
    tp_size: int | None = None
    pp_size: int | None = None
    nnodes: int | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Options that SGLang 0.5.23 lacks, or that would change the number of devices."""
        for name in REMOVED:
            if (value := getattr(self, name)) not in (None, False, ""):
                yield name, f"found {value!r}; SGLang 0.5.23 has no such option; remove it"
        for name in DEVICES:
            if (value := getattr(self, name)) is not None:
                yield (
                    name,
                    f"found {value}; allowed is null, because devices are counted in one place; write them in "
                    "rollout.backend, such as sglang:d2t4 for two servers of four",
                )
        if self.dp_size > 1 and not self.enable_dp_attention:
            yield (
                "dp_size",
                f"found {self.dp_size}, which would need {self.dp_size} times the devices; allowed is 1 without "
                "enable_dp_attention; write the number of servers in rollout.backend, such as sglang:d4",
            )


NOT_PASSED = frozenset(
    {"python", "model_path", "dtype", "load_format", "skip_tokenizer_init", "enable_return_routed_experts"}
    | {*DEVICES, *REMOVED}
)
"""Options that ``command_options`` does not pass one by one."""


def command_options(options: SglangOptions) -> list[str]:
    """The options as arguments of ``sglang.launch_server``. Null, false and empty values are left out."""
    arguments: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in NOT_PASSED or value is None or value is False or value == "":
            continue
        flag = flag_of(field.name)
        values = [] if value is True else [str(item) for item in value] if isinstance(value, list) else [str(value)]
        arguments += [flag, *values]
    return arguments


def flag_of(name: str) -> str:
    """The flag of an option in SGLang 0.5.23."""
    return "--" + RENAMED.get(name, name).replace("_", "-")


def ranks_problem(options: SglangOptions, layout: Layout) -> str:
    """Why the ranks of a server cannot be divided as the options say; empty if they can."""
    tensor = layout.dims["t"]
    for name in ("ep_size", "dp_size"):
        if tensor % getattr(options, name):
            return (
                f"sglang.{name}: found {getattr(options, name)}; allowed are divisors of {tensor}, the ranks of a "
                "server; set it to 1, or raise t in rollout.backend"
            )
    return ""
