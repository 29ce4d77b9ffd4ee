"""The peak rates and the memory of accelerators, from their data sheets."""

from typing import NamedTuple


class Device(NamedTuple):
    """The peak rates and the memory of one device, in the sense of `jax`."""

    flops: float  # dense bfloat16 products, FLOP/s
    bandwidth: float  # of the memory, bytes/s
    memory: float  # bytes
    links: float  # bytes/s that it sends over all links to devices of its kind together
    clock: float | None = None  # of the matrix units, Hz


_H100 = Device(989e12, 3350e9, 80e9, 450e9)
_V5E = Device(197e12, 819e9, 16e9, 200e9, 1.5e9)
_V5P = Device(459e12, 2765e9, 95e9, 600e9, 1.75e9)
_V6E = Device(918e12, 1638e9, 32e9, 400e9)

# The keys are the first words of `device_kind`; the longest match counts. Sources for TPUs are the
# pages "TPU v3" to "TPU v6e" of docs.cloud.google.com, whose rates of links are halved, because
# they add both directions (older versions give one direction, in Gbit/s); for v3 and v4 the
# papers, Jouppi et al. 2020 ("A domain-specific supercomputer") and arXiv 2304.01433. Sources for
# NVIDIA are the data sheets, without sparsity, with half of NVLink's bandwidth or, for cards
# without NVLink, the bandwidth of their PCIe slot.
DEVICES = {
    "TPU v3": Device(61.5e12, 450e9, 16 * 2**30, 164e9),  # one of the two cores of a chip
    "TPU v4": Device(275e12, 1200e9, 32 * 2**30, 300e9, 1.05e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "NVIDIA A100": Device(312e12, 1555e9, 40e9, 300e9),
    "NVIDIA A100 80GB": Device(312e12, 1935e9, 80e9, 32e9),  # PCIe
    "NVIDIA A100 PCIE": Device(312e12, 1555e9, 40e9, 32e9),
    "NVIDIA A100 SXM4 80GB": Device(312e12, 2039e9, 80e9, 300e9),
    "NVIDIA H100": _H100,
    "NVIDIA H100 NVL": Device(835e12, 3900e9, 94e9, 64e9),
    "NVIDIA H100 PCIe": Device(756e12, 2000e9, 80e9, 64e9),
    "NVIDIA H200": _H100._replace(bandwidth=4800e9, memory=141e9),
    "NVIDIA H200 NVL": Device(835e12, 4800e9, 141e9, 64e9),
    "NVIDIA GH200": _H100._replace(bandwidth=4000e9, memory=96e9),
    "NVIDIA GH200 144G": _H100._replace(bandwidth=4900e9, memory=144e9),
    "NVIDIA L4": Device(121e12, 300e9, 24e9, 32e9),
    "NVIDIA L40S": Device(362e12, 864e9, 48e9, 32e9),
}


def find(kind: str) -> Device | None:
    """Return the device with this `device_kind`, or None if the kind is unknown."""
    words = kind.replace("-", " ") + " "  # "NVIDIA A100-SXM4-80GB"; "NVIDIA L40" is no "NVIDIA L4"
    names = [name for name in DEVICES if words.startswith(name + " ")]
    return DEVICES[max(names, key=len)] if names else None
