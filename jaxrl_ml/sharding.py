"""Where arrays live: the device mesh, and the logical-axis rules for training and for sampling.

In: logical axis names of weights (`Transformer.axes`) and activations. Out: `NamedSharding`s. The mesh has four axes: `data`
(copies of the model), `fsdp` (shards of the weights, gathered a layer at a time), `context` (in learning, sequences are split,
and weights as over fsdp; in sampling it adds to tensor), `tensor` (heads, MLP and vocabulary split). Rows of a batch are split
over data and fsdp together, so that each process holds one block of them. Where a tensor or context axis joins processes, these
hold the same block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl_ml import processes
from jaxrl_ml.config import MeshConfig
from jaxrl_ml.types import UserError, require

Rules = tuple[tuple[str, tuple[str, ...]], ...]


def _rules(
    rows: tuple[str, ...], split: tuple[str, ...], kernel: tuple[str, ...], embed: tuple[str, ...], sequence: tuple[str, ...]
) -> Rules:
    """Rules in which heads, MLP and vocabulary are over the axes `split`, but heads over `kernel` where sequences are whole."""
    return (
        ("rows", rows),
        *((name, split) for name in ("heads", "kv_heads", "mlp", "vocab")),
        *((name, kernel) for name in ("kernel_heads", "kernel_kv_heads")),
        ("embed", embed),
        ("sequence", sequence),
        *((name, ()) for name in ("layers", "head_dim", "norm")),
    )


TRAINING = _rules(
    rows=("data", "fsdp"), split=("tensor",), kernel=("tensor", "context"), embed=("fsdp", "context"), sequence=("context",)
)
SAMPLING = _rules(rows=("data", "fsdp"), split=("tensor", "context"), kernel=("tensor", "context"), embed=(), sequence=())
# Between the two: what context split of a width goes to heads, MLP and vocabulary. At once XLA would make tables whole for it.
BETWEEN = _rules(rows=("data", "fsdp"), split=("tensor", "context"), kernel=("tensor", "context"), embed=("fsdp",), sequence=())
# For weights that do not fit a device when they are whole over fsdp.
SPLIT_SAMPLING = _rules(
    rows=("data",), split=("tensor", "context", "fsdp"), kernel=("tensor", "context", "fsdp"), embed=(), sequence=()
)


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """The mesh (data, fsdp, context, tensor) over all devices. Raises UserError where the product does not fit their number."""
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: device.process_index)  # so that a process's rows adjoin
    rest = config.fsdp * config.context * config.tensor
    data = config.data if config.data > 0 else max(1, len(devices) // rest)
    if data * rest != len(devices):
        raise UserError(
            f"mesh data={config.data} fsdp={config.fsdp} context={config.context} tensor={config.tensor} "
            f"does not fit {len(devices)} device(s): the product of the axes must be their number (data=-1 takes what is left)"
        )
    shape = data, config.fsdp, config.context, config.tensor
    return Mesh(np.array(devices).reshape(shape), ("data", "fsdp", "context", "tensor"))


@dataclass(frozen=True)
class Layout:
    """A mesh and the rules that map logical axes onto it; hashable, so that jitted functions can close over it."""

    mesh: Mesh
    rules: Rules = TRAINING

    @property
    def row_shards(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def axes(self, name: str | None) -> tuple[str, ...]:
        """The mesh axes that a logical axis is split over; a context axis of one is left out. Raises KeyError where unknown."""
        axes = () if name is None else dict(self.rules)[name]
        return tuple(axis for axis in axes if axis != "context" or self.mesh.shape[axis] > 1)

    def parts(self, name: str | None) -> int:
        """Into how many parts a logical axis is split."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axes(name)]))

    def spec(self, names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
        """The PartitionSpec of an array of this shape.

        Key/value heads fewer than the tensor axis are replicated, and so are sequences that the context axis does not divide
        (language tags); any other size that its mesh axes do not divide is refused.
        Raises KeyError for an unknown name, UserError for an indivisible size, ValueError where two axes collide.
        """
        entries, used = [], set()
        for name, size in zip(names, shape, strict=True):
            axes, parts = self.axes(name), self.parts(name)
            few = name == "kv_heads" and size < parts and parts % size == 0
            if few or (name == "sequence" and size % parts):
                axes, parts = (), 1
            if size % parts:
                raise UserError(
                    f"{name} of size {size} cannot be split over mesh axes {'·'.join(axes)}={parts}: "
                    f"change the mesh, or make {name} a multiple of {parts}"
                )
            if used & set(axes):
                raise ValueError(f"axes {names} use mesh axis {sorted(used & set(axes))} twice")
            used |= set(axes)
            entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
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

    def local(
        self, function: Callable[..., jax.Array], names: tuple[tuple[str | None, ...], ...], *arrays: jax.Array
    ) -> jax.Array:
        """`function` of arrays, run by every device on its own part of them, told by their logical names.

        The result is split as the first array. Key/value heads fewer than the devices they go to are repeated, one for each.
        """

        def enough(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
            at = next((i for i, name in enumerate(axes) if name in ("kv_heads", "kernel_kv_heads")), None)
            parts = 1 if at is None else self.parts(axes[at])
            return jnp.repeat(x, parts // x.shape[at], axis=at) if parts > 1 and x.shape[at] < parts else x

        arrays = [enough(x, axes) for x, axes in zip(arrays, names, strict=True)]
        specs = tuple(self.spec(axes, x.shape) for x, axes in zip(arrays, names, strict=True))
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)

    def check_length(self, name: str, tokens: int) -> None:
        """Raises UserError where sequences of so many tokens, told by the name of the setting, cannot be split over context."""
        parts = self.mesh.shape["context"]
        require(
            tokens % parts == 0, f"{name}={tokens} cannot be split over mesh.context={parts}: make it a multiple of {parts}"
        )

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
