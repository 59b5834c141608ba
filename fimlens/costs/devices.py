"""Accelerators by name: what vendors state of them, and a price that is assumed."""

from typing import NamedTuple

from fimlens.costs.memory import GIB


class Device(NamedTuple):
    """Bytes of memory and peak dense FLOP/s in bfloat16, and where both are from; and an assumed price, dollars an hour."""

    memory: float
    peak: float
    source: str
    price: float


# GB are read as 10^9 bytes, the smaller reading. Peaks of GPUs are half of the data sheets', which are with sparsity.
DEVICES = {
    "a100": Device(80e9, 312e12, "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM", 2.0),
    "h100": Device(80e9, 989e12, "NVIDIA H100 Tensor Core GPU data sheet, SXM", 3.0),
    "h200": Device(141e9, 989e12, "NVIDIA H200 Tensor Core GPU data sheet, SXM", 4.0),
    "tpu-v5e": Device(16e9, 197e12, "Google Cloud TPU documentation, v5e, of a chip", 1.2),
    "tpu-v5p": Device(95 * GIB, 459e12, "Google Cloud TPU documentation, v5p, of a chip", 4.2),
    "tpu-v6e": Device(32e9, 918e12, "Google Cloud TPU documentation, v6e, of a chip", 2.7),
}
