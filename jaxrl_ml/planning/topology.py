"""The accelerators that can be planned for: what a chip has, and topologies of them, made without any.

In: a name such as `v5e:8x8`, `v5p:2x2x2`, `v6e:4x4` (chips along each axis of the torus), `h100:8` (GPUs of one node) or
`cpu:8` (fake devices, as many as XLA_FLAGS asks for). Out: its `Chip`, and devices to lay a mesh over and to compile for.

Sources, looked up on 25 November 2026:

- peak rates, memory and the sizes of slices of TPUs: Google Cloud's pages docs.cloud.google.com/tpu/docs/v5e, v5p and v6e;
- their links and network: "How to Scale Your Model", jax-ml.github.io/scaling-book/tpus (Google's pages tell a tenth more of
  links: 400, 1,200 and 800 GB/s a chip, all axes, in and out). A link is what a chip sends over one axis, both ways;
- H100 SXM5: NVIDIA's figures for dense bf16, memory and NVLink (900 GB/s, in and out) and 400 Gbit/s of network a GPU, as in
  the same book's chapter on GPUs;
- latencies of TPUs: 1 µs a hop, from the same book's chapter on sharding, and 5 to start, which is what its profile of a small
  all-gather on 4 v5e took (8 µs) beyond its 3 hops. For their network no source was found: 10 a stage is an assumption;
- latencies of H100: those by which NVIDIA's NCCL chooses between algorithms (src/graph/tuning.cc at b647562, its low-latency
  protocol): 6.6 µs to start a ring and 0.6 a step over NVLink, 5 a stage of a tree over the network;
- prices, US dollars a chip-hour on demand: v5e and v5p from the same book, which quotes cloud.google.com/tpu/pricing of 2025;
  v6e and H100 are no vendor's page but the order of what others quoted in 2025 and 2026 (2 to 4 dollars for an H100 of a GPU
  cloud, more elsewhere). They change: give yours with --price.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl_ml.types import UserError, require


class Latency(NamedTuple):
    """Seconds that a collective takes however little it sends: to start, and for each hop."""

    start: float
    hop: float  # to the next device of a ring
    ways: int  # that a ring is gone round at once
    axis: int  # devices of the longest ring; a larger group has several, one after the other
    stage: float  # of a tree over slices or nodes


_ICI, _NCCL, _HOST = Latency(5e-6, 1e-6, 2, 16, 1e-5), Latency(6.6e-6, 0.6e-6, 1, 8, 5e-6), Latency(1e-5, 1e-6, 1, 8, 1e-5)


@dataclass(frozen=True)
class Chip:
    """One device of a topology."""

    name: str
    memory: int  # bytes that a program may use
    flops: float  # peak matrix products a second, bf16
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s that it sends within a slice or node
    network: float  # bytes/s that it sends beyond
    largest: int  # chips of the largest slice or node
    price: float  # US dollars an hour
    wait: Latency

    def latency(self, kind: str, devices: int, span: int) -> float:
        """Seconds that a collective of a group takes beside its bytes' time; 0 for one device.

        An all-gather hands each device's part round a ring until the farthest has it: n − 1 hops, or half as many, rounded up,
        both ways at once. A reduce-scatter and an all-to-all take as many; an all-reduce is a reduce-scatter and an all-gather,
        and takes twice as many; a permute takes one. A group that is larger than an axis of the torus goes along one after the
        other: on 16×16 chips 8 + 8 hops, not 128. One that spans several slices or nodes goes through a tree over these too.
        Rings are taken to close, which those along an axis of v5e or v6e do at 16 chips only.
        """
        if devices == 1:
            return 0.0
        wait, parts = self.wait, min(devices, math.ceil(span / self.largest))
        hops, left = 0, math.ceil(devices / parts)
        while left > 1:
            hops += math.ceil((min(left, wait.axis) - 1) / wait.ways)
            left = math.ceil(left / wait.axis)
        if kind == "collective-permute":
            hops, parts = min(hops, 1), min(parts, 2)
        once = hops * wait.hop + math.ceil(math.log2(parts)) * wait.stage
        return wait.start + (2 if kind == "all-reduce" else 1) * once


GIB = 2**30
CHIPS = {
    # The compiler gives a v5e program 15.75 GiB of its 16, and so on.
    "v5e": Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 90e9, 3.1e9, 256, 1.20, _ICI),
    "v5p": Chip("v5p", int(95.74 * GIB), 459e12, 2765e9, 180e9, 6.2e9, 8960, 4.20, _ICI),
    "v6e": Chip("v6e", int(31.25 * GIB), 918e12, 1638e9, 180e9, 12.5e9, 256, 2.70, _ICI),
    "h100": Chip("h100", int(79.1 * GIB), 989e12, 3352e9, 450e9, 50e9, 8, 3.00, _NCCL),
    "cpu": Chip("cpu", 8 * GIB, 50e9, 10e9, 5e9, 1e9, 8, 0.0, _HOST),  # of one core, so that plans can be tried anywhere
}

# What XLA must know of an H100 to compile for one, as a `stream_executor.GpuTargetConfigProto`.
_H100 = """
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 2 }
runtime_version { major: 13 minor: 0 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978565120
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclass(frozen=True)
class Topology:
    """Chips of one kind, `shape` along the axes of their torus, or in one node."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_devices(self) -> int:
        return math.prod(self.shape)


def parse(text: str) -> Topology:
    """The topology of a name. Raises UserError where it is none."""
    kind, _, shape = text.partition(":")
    require(kind in CHIPS, f"--topology {text}: no chip {kind!r}; there are {', '.join(CHIPS)}, such as v5e:8x8 or h100:8")
    axes = {"v5e": 2, "v6e": 2, "v5p": 3}.get(kind, 1)
    example = {1: "8", 2: "8x8", 3: "2x2x2"}[axes]
    sizes = tuple(map(int, shape.split("x"))) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) else ()
    require(len(sizes) == axes, f"--topology {text}: {kind} has {axes} axis or axes, such as {kind}:{example}")
    found = Topology(CHIPS[kind], sizes)
    limit = CHIPS[kind].largest
    require(
        found.num_devices <= limit, f"--topology {text}: {found.num_devices} chips are more than one {kind} slice's {limit}"
    )
    return found


def attention_on(chip: Chip, asked: str) -> str:
    """compute.attention on the chip, auto settled as `programs.resolve_kernel` does, but plain on H100: see `plan`."""
    own = {"cpu": "plain", "h100": "plain"}.get(chip.name, "splash")
    return own if asked == "auto" or chip.name == "h100" else asked


def missing(topology: Topology) -> str | None:
    """What must be installed to compile for the topology; None: nothing."""
    kind = topology.chip.name
    wanted = {"cpu": (), "h100": ("jax_cuda13_plugin", "jax_plugins.xla_cuda13")}.get(kind, ("libtpu",))
    lacking = [name for name in wanted if importlib.util.find_spec(name.split(".")[0]) is None]
    return f"{', '.join(lacking)} not installed: pip install 'jaxrl_ml[plan]' to compile" if lacking else None


def devices(topology: Topology) -> list[Any]:
    """Devices to compile for; they run nothing. Raises UserError where the compiler does not know the topology."""
    import jax
    from jax.experimental import topologies

    kind = topology.chip.name
    try:
        if kind == "cpu":
            found = jax.devices("cpu")[: topology.num_devices]
            require(
                len(found) == topology.num_devices,
                f"--topology {topology.name}: there are {len(found)} CPU devices; "
                f"set XLA_FLAGS=--xla_force_host_platform_device_count={topology.num_devices}",
            )
            return found
        if kind == "h100":
            slots = f"1x1x{topology.num_devices}"
            options = {"platform": "cuda", "topology_name": "h100", "target_config": _H100, "topology": slots}
        else:
            options = {"platform": "tpu", "topology_name": topology.name}
        with _quiet():
            return list(topologies.get_topology_desc(**options).devices)
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(
            f"--topology {topology.name}: the compiler does not know it ({line}); take a shape that is sold"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from standard error what libtpu says where there is no TPU."""
    saved = os.dup(2)
    with Path(os.devnull).open("w") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def prepare_environment() -> None:
    """Lets this process compile for accelerators that it does not have; before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
