"""The table of devices, each figure with its source.

Peaks are dense, without sparsity: vendors print twice as much for bf16. Link bandwidths are for one direction: vendors
print both directions together. Memory is what the driver reports, which is less than the printed size.
"""

from __future__ import annotations

from archon_plan.device import Device, Efficiency

_GIB = 2**30
_TERA, _GIGA = 1e12, 1e9

_MAMF = "best shape in Stas Bekman's ml-engineering (maximum achievable matmul FLOPS)"
_NCCL = "NCCL, src/graph/tuning.cc: ring, simple protocol"
_ON_NVLINK = (3.4e-6, 14e-6)
"""Latencies of one ring step in NCCL's own model: NVLink, network."""
_ON_PCIE = (5.7e-6, 14e-6)

_NCCL_TESTS = "nccl-tests on eight devices: 230 to 250 of 300 GB/s (A100), about 360 of 450 GB/s (H100)"


def _device(
    name: str,
    *,
    memory: tuple[float, str],
    peaks: tuple[float, float, str],
    bandwidth: tuple[float, str],
    node: tuple[float, str],
    network: tuple[float, str],
    host: tuple[float, str],
    latencies: tuple[float, float],
    dense: tuple[float, str],
    grouped: tuple[float, str],
    attention: tuple[float, str],
) -> Device:
    sources = {
        "memory": memory[1],
        "peak_bf16": peaks[2],
        "peak_fp32": peaks[2],
        "memory_bandwidth": bandwidth[1],
        "node_bandwidth": node[1],
        "node_latency": _NCCL,
        "network_bandwidth": network[1],
        "network_latency": _NCCL,
        "host_bandwidth": host[1],
        "devices_per_node": "vendor's eight-device board",
        "cores": "0: each device computes by itself",
        "efficiency.dense": dense[1],
        "efficiency.grouped": grouped[1],
        "efficiency.attention": attention[1],
        "efficiency.node": _NCCL_TESTS,
    }
    return Device(
        name=name,
        memory=memory[0],
        peak_bf16=peaks[0] * _TERA,
        peak_fp32=peaks[1] * _TERA,
        memory_bandwidth=bandwidth[0] * _GIGA,
        node_bandwidth=node[0] * _GIGA,
        node_latency=latencies[0],
        network_bandwidth=network[0] * _GIGA,
        network_latency=latencies[1],
        host_bandwidth=host[0] * _GIGA,
        devices_per_node=8,
        efficiency=Efficiency(dense[0], grouped[0], attention[0]),
        sources=tuple(sources.items()),
    )


_A100 = "NVIDIA A100 data sheet (nvidia-1758950)"
_H100 = "NVIDIA H100 data sheet (SXM5), half the figure with sparsity"
_B200 = "NVIDIA HGX B200 data sheet, half the figure with sparsity"
_HDR = (25, "NVIDIA DGX A100: one 200 Gb/s InfiniBand port per device")
_NDR = (50, "NVIDIA DGX H100, H200 and B200: one 400 Gb/s InfiniBand port per device")
_PCIE4 = (32, "PCIe 4.0 x16")
_PCIE5 = (64, "PCIe 5.0 x16")
_FA2 = "FlashAttention-2, arXiv:2307.08691: 50% to 73% of an A100's peak"
_FA2_ON_HOPPER = (
    "FlashAttention-2 in arXiv:2407.08608, figures 5 and 6: 319 (causal) and 310 TFLOP/s at 4k, head size 128"
)
_GROUPED = "assumed, 3/4 of dense products; calibrate"


_TITAN = "torchtitan, docs/performance.md, Llama 3.1 8B"
_ON_A100 = f"fitted to {_TITAN} on 64 A100s: 2,973 tokens/s each"
_ON_H100 = f"fitted to {_TITAN} on eight H100s limited to 500 W: 5,762 tokens/s each without compiling, 6,667 with it"


def _dense(share: float, source: str, best: float) -> tuple[float, str]:
    return share, f"{source}; {best:g} for the {_MAMF}"


DEVICES: tuple[Device, ...] = (
    _device(
        "a100-40g",
        memory=(39.5 * _GIB, "cudaGetDeviceProperties: 42,405,855,232 bytes"),
        peaks=(312, 19.5, _A100),
        bandwidth=(1555, _A100),
        node=(300, f"{_A100}: NVLink, 600 GB/s in both directions"),
        network=_HDR,
        host=_PCIE4,
        latencies=_ON_NVLINK,
        dense=_dense(0.65, _ON_A100, 0.869),
        grouped=(0.49, _GROUPED),
        attention=(0.55, _FA2),
    ),
    _device(
        "a100-80g",
        memory=(79.1 * _GIB, "total capacity in torch's out-of-memory messages"),
        peaks=(312, 19.5, _A100),
        bandwidth=(2039, _A100),
        node=(300, f"{_A100}: NVLink, 600 GB/s in both directions"),
        network=_HDR,
        host=_PCIE4,
        latencies=_ON_NVLINK,
        dense=_dense(0.65, _ON_A100, 0.869),
        grouped=(0.49, _GROUPED),
        attention=(0.55, _FA2),
    ),
    _device(
        "h100",
        memory=(79.1 * _GIB, "total capacity in torch's out-of-memory messages (vllm-project/vllm#27508)"),
        peaks=(989, 67, _H100),
        bandwidth=(3350, _H100),
        node=(450, f"{_H100}: NVLink, 900 GB/s in both directions"),
        network=_NDR,
        host=_PCIE5,
        latencies=_ON_NVLINK,
        dense=_dense(0.55, _ON_H100, 0.803),
        grouped=(0.41, _GROUPED),
        attention=(0.3, _FA2_ON_HOPPER),
    ),
    _device(
        "h200",
        memory=(139 * _GIB, "cudaMemGetInfo"),
        peaks=(989, 67, "NVIDIA H200 data sheet (SXM), half the figure with sparsity"),
        bandwidth=(4800, "NVIDIA H200 data sheet (SXM)"),
        node=(450, "NVIDIA H200 data sheet: NVLink, 900 GB/s in both directions"),
        network=_NDR,
        host=_PCIE5,
        latencies=_ON_NVLINK,
        dense=_dense(0.55, f"as the H100, {_ON_H100}", 0.8),
        grouped=(0.41, _GROUPED),
        attention=(0.3, _FA2_ON_HOPPER),
    ),
    _device(
        "b200",
        memory=(178.3 * _GIB, "cudaGetDeviceProperties (pytorch/ao#4002)"),
        peaks=(2250, 80, _B200),
        bandwidth=(7670, "7,680 bits at 3,996 MHz (pytorch/ao#4002); the data sheet says 8 TB/s"),
        node=(900, f"{_B200}: NVLink, 1,800 GB/s in both directions"),
        network=_NDR,
        host=_PCIE5,
        latencies=_ON_NVLINK,
        dense=_dense(0.53, "assumed, the H100's share of the best shape; calibrate", 0.776),
        grouped=(0.4, _GROUPED),
        attention=(0.2, "assumed; calibrate"),
    ),
    _device(
        "l40s",
        memory=(44.4 * _GIB, "total capacity in torch's out-of-memory messages of the L40 (QwenLM/Qwen3-VL#2097)"),
        peaks=(362.05, 91.6, "NVIDIA L40S data sheet, figure without sparsity"),
        bandwidth=(864, "NVIDIA L40S data sheet"),
        node=(32, "NVIDIA L40S data sheet: PCIe 4.0 x16, 64 GB/s in both directions, no NVLink"),
        network=(12.5, "assumed: one 100 Gb/s port per device"),
        host=_PCIE4,
        latencies=_ON_PCIE,
        dense=(0.5, "assumed; calibrate"),
        grouped=(0.38, _GROUPED),
        attention=(0.45, "assumed; calibrate"),
    ),
    _device(
        "mi300x",
        memory=(191.5 * _GIB, "AMD Instinct MI300X data sheet: 192 GB of HBM3, less the driver's"),
        peaks=(1307.4, 163.4, "AMD Instinct MI300X data sheet"),
        bandwidth=(5300, "AMD Instinct MI300X data sheet"),
        node=(448, "AMD Instinct MI300X data sheet: Infinity Fabric, seven links of 128 GB/s in both directions"),
        network=(50, "assumed: one 400 Gb/s port per device"),
        host=_PCIE5,
        latencies=_ON_NVLINK,
        dense=_dense(0.36, "assumed, 0.7 of the best shape; calibrate", 0.511),
        grouped=(0.27, _GROUPED),
        attention=(0.25, "assumed; calibrate"),
    ),
    Device(
        name="cpu",
        memory=8 * _GIB,
        peak_bf16=1e11,
        peak_fp32=1e11,
        memory_bandwidth=1e10,
        node_bandwidth=2e9,
        node_latency=1e-4,
        network_bandwidth=1.25e9,
        network_latency=2e-4,
        host_bandwidth=1e10,
        devices_per_node=8,
        efficiency=Efficiency(dense=0.7, grouped=0.5, attention=0.4),
        launch=1e-5,
        kind="cpu",
        context_bytes=0.5 * _GIB,
        communicator_bytes=0.0,
        sources=(
            ("peak_bf16", "assumed: as fp32"),
            ("cores", "assumed: one for each rank; calibrate"),
            ("peak_fp32", "assumed: one core with AVX2, two FMA units, 3 GHz; calibrate"),
            ("context_bytes", "assumed: an interpreter with torch loaded; calibrate"),
            ("network_bandwidth", "assumed: 10 Gb/s Ethernet; calibrate"),
        ),
    ),
)
"""All devices that ``find_device`` knows by name."""
