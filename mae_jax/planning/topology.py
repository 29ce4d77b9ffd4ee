"""The devices that a topology names: those of this machine, or a slice of TPUs or GPUs elsewhere.

The extra `tpu` brings the real compiler for a slice of TPUs, which needs no TPU.
"""

import dataclasses
import os
import re
from typing import Any

import jax

GPUS = {name: f"NVIDIA {name.upper()}" for name in ("h100", "h200", "gh200", "l4", "l40s")}
GPUS = {"a100": "NVIDIA A100", "a100-80": "NVIDIA A100 SXM4 80GB"} | GPUS
FORMS = f"v5e:4x4, v5p:2x2x2, v6e:4x4, cpu, gpu, or N GPUs of {', '.join(GPUS)}, as in h100:8"


@dataclasses.dataclass(frozen=True)
class AbsentDevice:
    """A stand-in for a device of another machine, which a mesh accepts."""

    id: int
    device_kind: str
    process_index: int = 0
    platform: str = "gpu"


def devices(topology: str) -> list[Any]:
    """List the devices that the argument `--topology` names.

    Raises:
      ValueError: the topology is unknown, or its devices or compiler are not on this machine.
    """
    topology = topology.lower()
    kind, _, count = topology.partition(":")
    if topology in ("cpu", "gpu"):
        try:
            return jax.devices(topology)
        except RuntimeError as error:
            raise ValueError(f"topology {topology!r}: this machine has none ({error})") from error
    if kind in GPUS and count.isdigit() and 0 < int(count) <= 2**16:
        jax.config.update("jax_platforms", "cpu")
        return [AbsentDevice(i, GPUS[kind], i // 8) for i in range(int(count))]
    if not re.fullmatch(r"v\d+[a-z]*:[1-9]\d*(x[1-9]\d*)*", topology):
        raise ValueError(f"unknown topology {topology!r}: use one of {FORMS}")
    # Without these variables the compiler looks for a TPU, complains that there is none, and locks
    # out a second process.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    jax.config.update("jax_platforms", "cpu")
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        way = "pip install 'mae_jax[tpu]' (no TPU is needed)"
        raise ValueError(f"topology {topology!r} needs the compiler for TPUs: {way}") from error
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        why = str(error).removeprefix("INVALID_ARGUMENT: ")
        raise ValueError(f"unknown topology {topology!r} ({why}): use one of {FORMS}") from error
