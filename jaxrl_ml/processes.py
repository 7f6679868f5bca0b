"""Several processes that train as one: how they start, what they tell each other, and how they stop.

In: `Config.distributed`, the environment of a launcher, and host values of this process. Out: those of all processes. Every
process must call these functions at the same places, with no program of its own in flight. A process alone pays nothing.

What happens when a process is lost: the others find their connections to it closed, at once in a collective (on CPU), or miss
its heartbeat for `distributed.timeout_s`, wherever they are. Either way they end, and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl_ml.config import DistributedConfig
from jaxrl_ml.types import UserError

_ARRAY = "__array__"
_OF_A_PEER = re.compile(r"gloo|nccl|peer|socket|connection|coordination|heartbeat|preempt", re.IGNORECASE)


def start(config: DistributedConfig, environment: Mapping[str, str] = os.environ) -> bool:
    """Joins the other processes of the run, if there are any; returns whether this is the main one, which writes the files.

    Must be called before jax has found its devices.
    """
    arguments = arguments_of(config, environment)
    if arguments is None:
        return True
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is the loop's
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=config.timeout_s)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes did not meet ({_first_line(error)}); check that all were started, and the distributed.* settings"
        ) from error
    return jax.process_index() == 0


def arguments_of(config: DistributedConfig, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be given; None where the process is alone.

    Settings come first, then a SLURM step of several tasks, then a TPU slice of several hosts (GKE; several slices too). Of
    SLURM's tasks each takes one GPU, or all of its node where it is the only one there.
    """
    if config.coordinator is not None:
        return {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
            "cluster_detection_method": "deactivate",
        }
    tasks = int(environment.get("SLURM_NTASKS", 1))
    if tasks > 1 and "SLURM_STEP_NODELIST" in environment:
        alone_on_its_node = tasks == int(environment.get("SLURM_STEP_NUM_NODES", 0))
        gpus = int(environment.get("SLURM_GPUS_ON_NODE", 0)) if alone_on_its_node else 0
        devices = {"local_device_ids": list(range(gpus))} if gpus else {}
        return {"cluster_detection_method": "slurm", **devices}
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    return {} if config.detect or "," in hosts or slices > 1 else None


def gather(value: Any) -> list[Any]:
    """What each process gives, in the order of the processes.

    value: JSON-able, with numpy arrays in it; processes may give others, of other shapes. Tuples come back as lists.
    """
    if jax.process_count() == 1:
        return [value]
    arrays: list[np.ndarray] = []

    def take_out(array: Any) -> dict[str, int]:
        arrays.append(np.asarray(array))
        return {_ARRAY: len(arrays)}

    text = json.dumps(value, default=take_out)
    buffer = io.BytesIO()
    np.savez(buffer, np.frombuffer(text.encode(), np.uint8), *arrays)
    sizes = _gather_array(np.int32(buffer.tell()))
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)  # few widths: each is compiled
    padded[: buffer.tell()] = np.frombuffer(buffer.getvalue(), np.uint8)
    return [_unpack(row[:size].tobytes()) for row, size in zip(_gather_array(padded), sizes, strict=True)]


def _unpack(data: bytes) -> Any:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        text, *arrays = (file[name] for name in file.files)
    return json.loads(text.tobytes(), object_hook=lambda found: arrays[found[_ARRAY] - 1] if _ARRAY in found else found)


def _gather_array(array: np.ndarray) -> np.ndarray:
    """[processes, …] of an array that has one shape everywhere."""
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(array))


def local_rows(tree: Any) -> Any:
    """The rows of arrays that lie on this process's devices, in order, as numpy arrays; waits for them."""

    def fetch(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable:
            return jax.device_get(array)
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate(jax.device_get([parts[first] for first in sorted(parts)]))

    return jax.tree.map(fetch, tree)


class Vote:
    """The largest of the numbers that the processes give at a step; told a step later, so that nobody waits for it."""

    def __init__(self) -> None:
        self._pending: jax.Array | None = None

    def __call__(self, number: int) -> int:
        if jax.process_count() == 1:
            return number
        sharding = NamedSharding(Mesh(np.array(jax.devices()), "all"), PartitionSpec("all"))
        given = np.full(jax.local_device_count(), number, np.int32)
        before, self._pending = self._pending, jnp.max(jax.make_array_from_process_local_data(sharding, given))
        return 0 if before is None else int(before)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends one of several processes at once where something is raised: the others then see its connections close.

    An ordinary exit would wait for the others, which wait for it in a collective. Exit status 2 for a UserError, else 1: a run
    that failed is not to be started again by its launcher as one that was preempted is (75).
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        print(_farewell(error), file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2 if isinstance(error, UserError) else 1)


def _farewell(error: BaseException) -> str:
    me = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, UserError):
        return f"error: {error} ({me})"
    if isinstance(error, jax.errors.JaxRuntimeError) and _OF_A_PEER.search(str(error)):
        return (
            f"error: {me} stops, for it lost another ({_first_line(error)}); see what the others say, and start all again: "
            "the run goes on from its last checkpoint"
        )
    return "".join(traceback.format_exception(error)) + f"error: {me} failed"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
