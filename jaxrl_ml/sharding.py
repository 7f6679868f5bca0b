"""Where arrays live: the device mesh, and the logical-axis rules for training and for sampling.

In: logical axis names of weights (`Transformer.axes`) and activations. Out: `NamedSharding`s. The mesh has three axes: `data`
(copies of the model), `fsdp` (shards of the weights, gathered a layer at a time), `tensor` (heads, MLP and vocabulary split).
Rows of a batch are split over data and fsdp together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
    devices = jax.devices() if devices is None else devices
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

    def local(
        self, function: Callable[..., jax.Array], names: tuple[tuple[str | None, ...], ...], *arrays: jax.Array
    ) -> jax.Array:
        """`function` of arrays, run by every device on its own part of them, told by their logical names.

        The result is split as the first array. Key/value heads fewer than the tensor axis are repeated: one for each device.
        """
        tensor = self.mesh.shape["tensor"]

        def whole(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
            at = axes.index("kv_heads") if "kv_heads" in axes else None
            return x if at is None or x.shape[at] >= tensor else jnp.repeat(x, tensor // x.shape[at], axis=at)

        arrays = [whole(x, axes) for x, axes in zip(arrays, names, strict=True)]
        specs = tuple(self.spec(axes, x.shape) for x, axes in zip(arrays, names, strict=True))
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)

    def constrain(self, x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        """Pins the sharding of an activation inside a jitted function."""
        return jax.lax.with_sharding_constraint(x, self.sharding(names, x.shape))

    def put_rows(self, tree: Any) -> Any:
        """Places host arrays whose first axis is rows, this process giving its own part of them."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.rows(np.ndim(x)), np.asarray(x)), tree)

    def put(self, tree: Any) -> Any:
        """Places host values on every device."""
        return jax.device_put(tree, self.replicated)
