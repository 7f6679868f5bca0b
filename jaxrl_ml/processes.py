"""Several processes that train as one: how they start, what they tell each other, and how they stop.

In: `Config.distributed`, the environment of a launcher, and host values of this process. Out: those of all processes. Every
process must call these functions at the same places, with no program of its own in flight. A process alone pays nothing.

A process that fails says so to the others, which stop within seconds; one that is killed or hangs is missed after
`distributed.timeout_s`, or at once in a collective on CPU. Where it is process 0, jax itself may be what ends the others: at
once where that was killed, else 15 s later. The run goes on from its last checkpoint.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl_ml import storage
from jaxrl_ml.config import DistributedConfig
from jaxrl_ml.types import UserError, require

_ARRAY = "__array__"
_BEAT_S = 1.0
_GRACE_S = 15  # for which the watch is ahead of jax, which ends a process with a page of stack frames
_LEFT = "left"
_REMEDY = "see what the others say, and start all again: the run goes on from its last checkpoint"
_OF_A_PEER = re.compile(r"gloo|nccl|peer|socket|connection|coordination|heartbeat|preempt", re.IGNORECASE)


@contextmanager
def together(config: DistributedConfig, environment: Mapping[str, str] = os.environ) -> Iterator[bool]:
    """Joins the other processes of the run, if there are any; gives whether this is the main one, which writes the files.

    Must be entered before jax has found its devices. Where something is raised, one of several processes ends at once: an
    ordinary exit would wait for the others, which wait for it in a collective. Exit status 2 for a UserError, else 1: a run
    that failed is not to be started again by its launcher as one that was preempted is (75).
    """
    arguments = arguments_of(config, environment)
    if arguments is None:
        yield True
        return
    before = jax.config.jax_enable_preemption_service
    jax.config.update("jax_enable_preemption_service", False)  # the training loop itself handles SIGTERM
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=config.timeout_s + _GRACE_S)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes did not meet ({_first_line(error)}); check that all were started, and the distributed.* settings"
        ) from error
    finally:
        jax.config.update("jax_enable_preemption_service", before)
    watch = _Watch(config.timeout_s)
    watch.start()
    try:
        yield watch.me == 0
    except BaseException as error:
        watch.say(farewell(error))
        watch.tell(f"process {watch.me} failed: {_first_line(error)}")
        os._exit(2 if isinstance(error, UserError) else 1)
    watch.leave()


class _Watch(threading.Thread):
    """Tells the processes when one of them is gone, by the key-value store of process 0, and ends this one then.

    Without it they would wait in a collective until jax ends them, with little said. Each process beats once a second; process
    0 notes who has stopped to, and says so to all.
    """

    def __init__(self, timeout_s: int) -> None:
        super().__init__(daemon=True)
        self.me, self._count, self._timeout_s = jax.process_index(), jax.process_count(), timeout_s
        self._client = distributed.global_state.client  # jax has no public name for it
        self._over = threading.Event()
        self._speaking = threading.Lock()  # never released

    def run(self) -> None:
        beats = [("", time.monotonic())] * self._count  # of each process, the last, and when it was first seen
        lost = None
        while lost is None:
            if self._over.wait(_BEAT_S):
                return
            try:
                self._set("alive", str(time.monotonic()))
                lost = next((text for _, text in self._client.key_value_dir_get("jaxrl_ml/gone/")), None)
                if lost is None and self.me == 0:
                    lost = self._silent(beats)
            except jax.errors.JaxRuntimeError as error:
                lost = f"process 0 does not answer: {_first_line(error)}"
        if self._over.is_set():
            return
        self.say(f"error: process {self.me} of {self._count} stops: {lost}; {_REMEDY}")
        if self.me == 0:
            self.tell(lost)
        os._exit(1)

    def _silent(self, beats: list[tuple[str, float]]) -> str | None:
        """Brings `beats` up to date; returns what is to be said of a process that has stopped."""
        now = time.monotonic()
        for name, beat in self._client.key_value_dir_get("jaxrl_ml/alive/"):
            process = int(name.rsplit("/", 1)[1])
            if beats[process][0] != beat:
                beats[process] = (beat, now)
        for process, (beat, since) in enumerate(beats):
            if beat != _LEFT and now - since > self._timeout_s:
                return f"process {process} was not heard of for {self._timeout_s} s"
        return None

    def _set(self, kind: str, text: str) -> None:
        self._client.key_value_set(f"jaxrl_ml/{kind}/{self.me}", text, allow_overwrite=True)

    def say(self, text: str) -> None:
        """Prints why this process ends: the first reason that is found, not what follows from it."""
        if self._speaking.acquire(blocking=False):
            print(text, file=sys.stderr, flush=True)
            sys.stdout.flush()

    def tell(self, text: str) -> None:
        """Says to all that this process, or another, is gone."""
        self._over.set()
        try:
            self._set("gone", text)
        except jax.errors.JaxRuntimeError:
            return  # nobody is left to tell
        if self.me == 0:  # the store goes with it
            time.sleep(3 * _BEAT_S)

    def leave(self) -> None:
        """Ends the watch of a process that is done."""
        self._over.set()
        self.join()
        self._set("alive", _LEFT)


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


def require_alone(command: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises UserError where several processes were started for a command that is for one."""
    alone = arguments_of(DistributedConfig(), environment) is None
    require(alone, f"{command} is for one process, and SLURM or the TPU slice here has several; run it on one host")


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


class StopSignal:
    """Remembers SIGTERM and SIGINT until the next step boundary; a second SIGINT interrupts at once."""

    def __enter__(self) -> StopSignal:
        self.requested = 0  # the number of the signal
        self._vote = Vote()
        self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number

    def agreed(self) -> int:
        """The signal that some process got, which stops all: called by each at every step boundary."""
        return self._vote(self.requested)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def farewell(error: BaseException) -> str:
    """What one of several processes says of the error that ends it."""
    me = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, UserError):
        return f"error: {storage.with_addresses(str(error))} ({me})"
    if isinstance(error, jax.errors.JaxRuntimeError) and _OF_A_PEER.search(str(error)):
        return f"error: {me} stops: it lost another ({_first_line(error)}); {_REMEDY}"
    return "".join(traceback.format_exception(error)) + f"error: {me} failed"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
