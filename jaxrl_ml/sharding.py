"""Where arrays live: the device mesh, and the logical-axis rules for training and for sampling.

In: logical axis names of weights (`Transformer.axes`) and activations. Out: `NamedSharding`s. The mesh has three axes: `data`
(copies of the model), `fsdp` (shards of the weights, gathered a layer at a time), `tensor` (heads, MLP and vocabulary split).
Rows of a batch are split over data and fsdp together, so that each process holds one block of them. Where a tensor axis joins
processes, these hold the same block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl_ml import processes
from jaxrl_ml.config import MeshConfig
from jaxrl_ml.types import UserError

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

_SHARED: Rules = (
    ("rows", ("data", "fsdp")),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("layers", None),
    ("head_dim", None),
    ("norm", None),
)
TRAINING: Rules = (*_SHARED, ("embed", "fsdp"))
SAMPLING: Rules = (*_SHARED, ("embed", None))


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices. Raises UserError where the product does not fit their number."""
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: device.process_index)  # so that a process's rows adjoin
    rest = config.fsdp * config.tensor
    data = config.data if config.data > 0 else max(1, len(devices) // rest)
    if data * rest != len(devices):
        raise UserError(
            f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} does not fit {len(devices)} device(s): "
            "the product of the axes must be their number (data=-1 takes what is left)"
        )
    return Mesh(np.array(devices).reshape(data, config.fsdp, config.tensor), ("data", "fsdp", "tensor"))


@dataclass(frozen=True)
class Layout:
    """A mesh and the rules that map logical axes onto it; hashable, so that jitted functions can close over it."""

    mesh: Mesh
    rules: Rules = TRAINING

    @property
    def row_shards(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def spec(self, names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
        """The PartitionSpec of an array of this shape.

        Key/value heads fewer than the tensor axis are replicated; any other size that its mesh axes do not divide is refused.
        Raises KeyError for an unknown name, UserError for an indivisible size, ValueError where two axes collide.
        """
        rules = dict(self.rules)
        entries, used = [], set()
        for name, size in zip(names, shape, strict=True):
            target = None if name is None else rules[name]
            axes = () if target is None else (target,) if isinstance(target, str) else target
            parts = int(np.prod([self.mesh.shape[a] for a in axes]))
            if name == "kv_heads" and size < parts and parts % size == 0:
                target, axes, parts = None, (), 1
            if size % parts:
                raise UserError(
                    f"{name} of size {size} cannot be split over mesh axes {'·'.join(axes)}={parts}: "
                    f"change the mesh, or make {name} a multiple of {parts}"
                )
            if used & set(axes):
                raise ValueError(f"axes {names} use mesh axis {sorted(used & set(axes))} twice")
            used |= set(axes)
            entries.append(target)
        return PartitionSpec(*entries)

    def sharding(self, names: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(names, shape))

    def tree(self, axes: Any, shapes: Any) -> Any:
        """Shardings of a tree of arrays (or ShapeDtypeStructs), given a like tree of tuples of logical names."""
        return jax.tree.map(lambda leaf, names: self.sharding(names, leaf.shape), shapes, axes)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def rows(self, ndim: int) -> NamedSharding:
        """The sharding of an array whose first axis is rows or prompts."""
        return NamedSharding(self.mesh, PartitionSpec(("data", "fsdp"), *[None] * (ndim - 1)))

    def constrain(self, x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        """Pins the sharding of an activation inside a jitted function."""
        return jax.lax.with_sharding_constraint(x, self.sharding(names, x.shape))

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """For each process, which of the equal blocks of rows it holds. Raises UserError where there are no such blocks."""
        owners = np.vectorize(lambda device: device.process_index)(self.mesh.devices).reshape(self.row_shards, -1)
        held = [np.flatnonzero((owners == process).any(1)) for process in range(jax.process_count())]
        size = len(held[0])
        if any(len(rows) != size or rows[0] % size or rows[-1] - rows[0] + 1 != size for rows in held):
            raise UserError(
                f"mesh.tensor={self.mesh.shape['tensor']} does not fit {jax.local_device_count()} devices a process: "
                "make one a multiple of the other, so that each process has whole rows"
            )
        return tuple(int(rows[0]) // size for rows in held)

    @property
    def block(self) -> tuple[int, int]:
        """The number of this process's block of rows, and how many there are."""
        return self.blocks[jax.process_index()], max(self.blocks) + 1

    def put_rows(self, tree: Any) -> Any:
        """Places host arrays whose first axis is rows, this process giving its own block of them."""
        _, count = self.block

        def place(x: np.ndarray) -> jax.Array:
            whole = (x.shape[0] * count, *x.shape[1:])
            return jax.make_array_from_process_local_data(self.rows(x.ndim), x, whole)

        with jax.transfer_guard("allow"):  # the loop forbids what it was not told of
            return jax.tree.map(lambda x: place(np.asarray(x)), tree)

    def own_rows(self, tree: Any) -> Any:
        """This process's block of host arrays of all rows."""
        number, count = self.block

        def cut(x: np.ndarray) -> np.ndarray:
            size = len(x) // count
            return x[number * size : (number + 1) * size]

        return jax.tree.map(cut, tree)

    def gather_blocks(self, value: Any) -> list[Any]:
        """What the process of each block gives (`processes.gather`), in the order of the rows; of several, the first."""
        found = processes.gather(value)
        return [found[self.blocks.index(number)] for number in range(max(self.blocks) + 1)]

    def put(self, tree: Any) -> Any:
        """Places host values, the same in every process, on every device."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.replicated)

        def place(x: Any) -> jax.Array:  # device_put would have the processes compare it
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(place(jax.random.key_data(x)))
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, self.replicated, lambda index: x[index])

        with jax.transfer_guard("allow"):
            return jax.tree.map(place, tree)
