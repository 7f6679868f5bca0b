"""Low-rank adapters: a second, small pytree of parameters that is trained in the place of the layers' matrices.

In: parameters and a `LoRAConfig`. Out: the same parameters with their layers `Adapted`. The model merges each layer to W +
alpha / rank · A·B as it comes to it, so that no more than one merged layer, or its gradient, exists at a time; gradients reach
A and B alone. For sampling and export they are `merged` as a whole.

Source: Hu et al., LoRA (arXiv 2106.09685), section 4.1. Departures:
1. On every matrix of the layers, also those of the MLP; the paper adapts q and v. Not on embeddings, head, norms and biases.
2. A starts uniform in ± inputs^-1/2, as PEFT's does; the paper draws it from a Gaussian. B starts at zero in both.
3. No dropout on the adapter's input: with merged weights there is no place for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_ml.config import LoRAConfig
from jaxrl_ml.types import Params

# The matrices of a layer, and how many of their leading axes are inputs.
MATRICES = {"attention": {"q": 1, "k": 1, "v": 1, "o": 2}, "mlp": {"gate": 1, "up": 1, "down": 1}}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted:
    """Layers under an adapter; stands in the place of `params["layers"]`."""

    base: Params  # the layers as they were, stacked on axis 0: frozen
    adapter: Params  # {"attention": {"q": {"a": f32 [L, *inputs, rank], "b": f32 [L, rank, *outputs]}, …}, "mlp": …}
    config: LoRAConfig = field(metadata={"static": True})


def is_adapted(params: Params) -> bool:
    return isinstance(params.get("layers"), Adapted)


def attach(params: Params, adapter: Params, config: LoRAConfig) -> Params:
    """`params` (plain) under `adapter`."""
    return {**params, "layers": Adapted(params["layers"], adapter, config)}


def frozen(params: Params) -> Params:
    """The plain parameters below the adapter, if there is one."""
    return {**params, "layers": params["layers"].base} if is_adapted(params) else params


def trained(params: Params) -> Params:
    """What the optimiser sees: the adapter, or all of plain parameters."""
    return params["layers"].adapter if is_adapted(params) else params


def with_trained(params: Params, new: Params) -> Params:
    """`params` with `new` in the place of `trained(params)`."""
    return {**params, "layers": replace(params["layers"], adapter=new)} if is_adapted(params) else new


def merged(params: Params) -> Params:
    """Plain parameters: the adapter added to the matrices it lies on. Plain ones come back as they are."""
    return {**params, "layers": jax.vmap(merge_layer)(params["layers"])} if is_adapted(params) else params


def merge_layer(layer: Adapted | Params) -> Params:
    """The plain parameters of one layer; of plain ones, themselves."""
    if not isinstance(layer, Adapted):
        return layer

    def merge(base: Params, pairs: Params) -> Params:
        return {**base, **{name: _add(base[name], pair, layer.config) for name, pair in pairs.items()}}

    return {**layer.base, **{module: merge(layer.base[module], pairs) for module, pairs in layer.adapter.items()}}


def merge_stacked(weight: jax.Array, pair: Params, config: LoRAConfig) -> jax.Array:
    """A matrix of all layers with its adapter added, a layer at a time: beside both there is no third array of its size."""
    return jax.lax.map(lambda layer: _add(*layer, config), (weight, pair))


def _add(weight: jax.Array, pair: Params, config: LoRAConfig) -> jax.Array:
    # Full precision: the export must be what was sampled from, on accelerators too. Its cost is that of `rank` tokens.
    scale = config.alpha / config.rank
    return weight + jnp.tensordot(pair["a"], scale * pair["b"], 1, precision=jax.lax.Precision.HIGHEST)


def adapter_like(params: Params, rank: int) -> Params:
    """The abstract adapter of abstract plain parameters: A is split as its matrix's inputs are, B as its outputs.

    Takes and gives ShapeDtypeStructs with NamedShardings; the rank is replicated.
    """

    def pair(weight: jax.ShapeDtypeStruct, inputs: int) -> dict[str, jax.ShapeDtypeStruct]:
        def like(shape: tuple[int, ...], spec: tuple[Any, ...]) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(weight.sharding.mesh, PartitionSpec(*spec))
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

        shape, spec, cut = weight.shape, tuple(weight.sharding.spec), 1 + inputs
        return {
            "a": like((*shape[:cut], rank), (*spec[:cut], None)),
            "b": like((shape[0], rank, *shape[cut:]), (spec[0], None, *spec[cut:])),
        }

    layers = params["layers"]
    return {
        module: {name: pair(layers[module][name], inputs) for name, inputs in matrices.items()}
        for module, matrices in MATRICES.items()
    }


def init_adapter(like: Params, key: jax.Array) -> Params:
    """A new adapter in the shapes of `like`: A random, B zero, so that it changes nothing yet."""
    names = [(module, name) for module, matrices in MATRICES.items() for name in matrices]
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))

    def draw(module: str, name: str, pair: Params) -> Params:
        bound = math.prod(pair["a"].shape[1:-1]) ** -0.5
        a = jax.random.uniform(keys[module, name], pair["a"].shape, minval=-bound, maxval=bound)
        return {"a": a, "b": jnp.zeros(pair["b"].shape)}

    return {module: {name: draw(module, name, pair) for name, pair in pairs.items()} for module, pairs in like.items()}
