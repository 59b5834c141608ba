"""Accelerators by name: memory and peak speed as their vendors state them, and an assumed price."""

from typing import NamedTuple

from fimlens.costs.memory import GIB


class Device(NamedTuple):
    """One accelerator: bytes of memory, peak dense FLOP/s in bfloat16, the source of both, and dollars an hour.

    The price is an assumption: it differs between providers and contracts.
    """

    memory: float
    peak: float
    source: str
    price: float


# GB are read as 10^9 bytes, the smaller reading. NVIDIA's data sheets state peaks with sparsity: half of those are here.
DEVICES = {
    "a100": Device(80e9, 312e12, "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM", 2.0),
    "h100": Device(80e9, 989e12, "NVIDIA H100 Tensor Core GPU data sheet, SXM", 3.0),
    "h200": Device(141e9, 989e12, "NVIDIA H200 Tensor Core GPU data sheet, SXM", 4.0),
    "tpu-v5e": Device(16e9, 197e12, "Google Cloud TPU documentation, one v5e chip", 1.2),
    "tpu-v5p": Device(95 * GIB, 459e12, "Google Cloud TPU documentation, one v5p chip", 4.2),
    "tpu-v6e": Device(32e9, 918e12, "Google Cloud TPU documentation, one v6e chip", 2.7),
}


# Share of the peak that our own training step reached: LLaMA-60M in bfloat16 on an H100, 34.4 TFLOP of products in 409 ms of
# gradient (benchmarks/README.md, "The optimizer's share of a step"). Larger models have larger products and reach more.
MEASURED_UTILISATION = 0.085
