"""Laws of the layout: everything large is split, and what does not fit is refused by name in one line."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY, Policy
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_ml import programs as programs_module
from jaxrl_ml.config import ComputeConfig, Config, GRPOStage, MeshConfig, ModelConfig, SamplingConfig, SFTStage
from jaxrl_ml.config import model as model_config
from jaxrl_ml.grpo import GRPO
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.programs import Programs
from jaxrl_ml.sampler import Settings
from jaxrl_ml.sft import SFT
from jaxrl_ml.sharding import SAMPLING, TRAINING, Layout, make_mesh
from jaxrl_ml.types import Batch, Packed, Prompts, Rollout, UserError


def layout(rules=TRAINING, **axes) -> Layout:
    return Layout(make_mesh(MeshConfig(**axes), jax.devices()), rules)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({}, (8, 1, 1, 1)),
        ({"fsdp": 4, "tensor": 2}, (1, 4, 1, 2)),
        ({"tensor": 2}, (4, 1, 1, 2)),
        ({"data": 2, "fsdp": 4}, (2, 4, 1, 1)),
        ({"fsdp": 2, "context": 4}, (1, 2, 4, 1)),
    ],
)
def test_data_takes_what_the_other_axes_leave(axes, shape):
    mesh = make_mesh(MeshConfig(**axes), jax.devices())
    assert mesh.axis_names == ("data", "fsdp", "context", "tensor")
    assert mesh.devices.shape == shape
    assert Layout(mesh).row_shards == shape[0] * shape[1]


@pytest.mark.parametrize("axes", [{"fsdp": 3}, {"data": 2}, {"data": 3, "fsdp": 3}, {"tensor": 16}])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(axes):
    with pytest.raises(UserError) as error:
        make_mesh(MeshConfig(**axes), jax.devices())
    text = str(error.value)
    assert "\n" not in text
    assert "8 device(s)" in text
    assert all(f"{name}={size}" in text for name, size in axes.items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_heads": 6, "num_kv_heads": 2}, "heads of size 6 cannot be split over mesh axes tensor=4"),
        ({"num_heads": 12, "num_kv_heads": 3}, "kv_heads of size 3 cannot be split over mesh axes tensor=4"),
        ({"num_heads": 12, "num_kv_heads": 6}, "kv_heads of size 6 cannot be split over mesh axes tensor=4"),
        ({"mlp_dim": 66}, "mlp of size 66 cannot be split over mesh axes tensor=4"),
        ({"vocab_size": 47}, "vocab of size 47 cannot be split over mesh axes tensor=4"),
        ({"embed_dim": 31}, "embed of size 31 cannot be split over mesh axes fsdp=2"),
    ],
)
def test_indivisible_sizes_are_refused_by_name(change, named):
    with pytest.raises(UserError) as error:
        Programs(replace(TINY, **change), ComputeConfig(), layout(fsdp=2, tensor=4).mesh)
    assert named in str(error.value)
    assert "make" in str(error.value) and "\n" not in str(error.value)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="rows of size 6 cannot be split over mesh axes data·fsdp=8"):
        layout(fsdp=2).spec(("rows", None), (6, 3))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_fewer_kv_heads_than_the_tensor_axis_are_replicated(kv_heads):
    assert layout(tensor=4).spec(("kv_heads",), (kv_heads,)) == PartitionSpec(None)
    assert layout(tensor=4).spec(("kv_heads",), (8,)) == PartitionSpec("tensor")
    programs = Programs(replace(TINY, num_kv_heads=kv_heads), ComputeConfig(), layout(tensor=4).mesh)
    attention = programs.param_shardings["layers"]["attention"]
    assert attention["k"].spec == PartitionSpec(None, "fsdp", None, None)
    assert attention["q"].spec == PartitionSpec(None, "fsdp", "tensor", None)


def test_unknown_and_colliding_names_raise():
    with pytest.raises(KeyError, match="experts"):
        layout().spec(("experts",), (8,))
    with pytest.raises(ValueError, match="tensor"):
        layout(tensor=2).spec(("heads", "mlp"), (8, 8))
    with pytest.raises(ValueError, match="zip"):
        layout().spec(("rows",), (8, 8))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_every_large_parameter_is_split_over_all_eight_devices(family):
    config = replace(TINY, family=family, tie_embeddings=False)
    model, parts = Transformer(config), layout(fsdp=4, tensor=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = parts.tree(model.axes(), shapes)
    assert jax.tree.structure(shapes) == jax.tree.structure(shardings)
    for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True):
        shard = np.prod(sharding.shard_shape(leaf.shape))
        if path[-1].key == "scale":
            assert shard == leaf.size
        elif path[-1].key.endswith("_bias"):
            assert shard * 2 == leaf.size
        else:
            assert shard * 8 == leaf.size, path


def test_sampling_weights_are_split_over_tensor_only():
    sampling = layout(SAMPLING, fsdp=4, tensor=2)
    assert sampling.spec(("vocab", "embed"), (48, 32)) == PartitionSpec("tensor", None)
    assert sampling.spec(("embed", "mlp"), (32, 64)) == PartitionSpec(None, "tensor")


def test_rows_are_placed_over_data_and_fsdp_and_come_back_whole():
    parts = layout(fsdp=2, tensor=2)
    rows = np.arange(24).reshape(8, 3)
    placed = parts.put_rows({"x": rows, "y": rows[:, 0]})
    np.testing.assert_array_equal(placed["x"], rows)
    assert {shard.data.shape for shard in placed["x"].addressable_shards} == {(2, 3)}
    assert {shard.data.shape for shard in placed["y"].addressable_shards} == {(2,)}
    everywhere = parts.put(np.arange(3))
    assert {shard.data.shape for shard in everywhere.addressable_shards} == {(3,)}
    assert len(everywhere.addressable_shards) == 8


# Every axis has a size, whole and in parts, that no other has: a shape tells what an array is.
WIDE = ModelConfig(
    vocab_size=208, num_layers=5, embed_dim=40, mlp_dim=88, num_heads=12, num_kv_heads=4, head_dim=14, tie_embeddings=False
)
Q, G, P, C = 16, 2, 30, 18


class Abstract:
    """The programs of WIDE on a mesh, and what they take, as shapes: they are compiled and never run."""

    def __init__(self, axes: dict[str, int], dtype: str = "float32") -> None:
        compute = ComputeConfig(dtype=dtype, logits_mib=0.04)  # slices of 72 of the 104 columns
        self.programs = Programs(WIDE, compute, make_mesh(MeshConfig(**axes), jax.devices()))
        self.layout = self.programs.layout

    def rows(self, dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.layout.rows(len(shape)))

    def put(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.layout.replicated)

    def compiled(self, name: str) -> Any:
        programs, optimizer, B = self.programs, optax.adam(1e-3), Q * G
        params, state = programs.params_like(), programs.state_shapes(optimizer)
        prompts = Prompts(self.rows("int32", Q, P), self.rows("bool", Q, P), self.rows("uint32", Q))
        ints, bools, floats = (self.rows(kind, B, C) for kind in ("int32", "bool", "float32"))
        rollout = Rollout(prompts, ints, self.rows("int32", B), bools, floats, self.rows("bool", B))
        stage = GRPOStage(None, None, prompts_per_step=Q, group_size=G, sampling=SamplingConfig(max_completion_tokens=C))
        one, table = self.put("float32"), self.put("int16", 3, WIDE.vocab_size)
        match name:
            case "init":
                lowered = programs.init.lower(self.put(jax.random.key(0).dtype))
            case "gather":
                lowered = programs.gather.lower(params)
            case "score":
                lowered = programs.score(stage).lower(params, rollout, one, None)
            case "update":
                batch = Batch(rollout, floats, bools, floats, floats)
                lowered = programs.update(stage, optimizer).lower(state, batch, self.put("int32"), one, None)
            case "fit":
                packed = Packed(ints, ints, bools, ints, ints)
                lowered = programs.fit(SFTStage(None, batch_size=B), optimizer).lower(state, packed)
            case "begin" | "decode":
                weights = self.result(programs.gather.lower(params))
                lowered = programs.begin.lower(weights, prompts, self.put("uint32", 4), table, G, C, 0)
                if name == "decode":
                    settings = Settings(one, self.put("int32"), one, one)
                    lowered = programs.decode.lower(weights, self.result(lowered), table, settings, False, self.put("int32"))
        return lowered.compile()

    def result(self, lowered: Any) -> Any:
        shardings = lowered.compile().output_shardings
        place = lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding)  # noqa: E731
        return jax.tree.map(place, lowered.out_info, shardings)


def whole_arrays(compiled: Any, tensor: int, context: int = 1) -> set[tuple[str, tuple[int, ...]]]:
    """What of the arrays that a device holds, inputs, results and temporaries, should have been split, and why."""
    L, D, H = WIDE.num_layers, WIDE.embed_dim, WIDE.head_dim
    heads, kv_heads = WIDE.num_heads, WIDE.num_kv_heads
    parts = {WIDE.mlp_dim // tensor, heads * H // tensor, kv_heads * H // tensor, H}
    found = set()
    for dims in set(re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", compiled.as_text())):
        shape = tuple(map(int, dims.split(",")))
        has = set(shape)
        if tensor > 1:
            if WIDE.vocab_size in has:
                found.add(("vocabulary", shape))
            if WIDE.mlp_dim in has:
                found.add(("mlp", shape))
            if heads * H in has or {heads, H} <= has:
                found.add(("heads", shape))
        if {L, D} <= has and has & parts:
            found.add(("all layers' weights", shape))
        if has & {D, H, *parts} and has & {Q * G, Q * G * C}:
            found.add(("activations of all rows", shape))
        if context > 1 and has & {D, WIDE.mlp_dim // tensor, WIDE.vocab_size // tensor} and has & {C, P - 1, P}:
            found.add(("activations of whole sequences", shape))
    return found


PROGRAMS = ("init", "gather", "begin", "decode", "score", "update", "fit")
CUBES = {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("axes", "name"),
    [
        *(({"fsdp": 2, "context": 2, "tensor": 2}, name) for name in PROGRAMS),
        ({"fsdp": 4, "context": 2, "tensor": 1}, "gather"),
        ({"fsdp": 2, "context": 4, "tensor": 1}, "gather"),
        *(pytest.param(axes, name, marks=pytest.mark.slow) for axes in CUBES for name in PROGRAMS),
    ],
    ids=str,
)
def test_no_program_holds_whole_what_is_split(name, axes, capfd, monkeypatch):
    """Neither vocabulary, MLP nor heads whole on a device, nor more layers' weights than one, nor activations of all rows or,
    where there is a context axis, of whole sequences.
    """
    monkeypatch.setattr(model_config, "BLOCK", 13)  # of V = 208: a token is drawn within a block, which is whole
    compiled = Abstract(axes).compiled(name)
    tensor, context = axes["tensor"], axes.get("context", 1)
    if name in ("gather", "begin", "decode"):
        tensor, context = tensor * context, 1
    found = whole_arrays(compiled, tensor, context)
    if name == "gather":  # whole over fsdp is a rule here, and so is, in between, one axis in exchange for the other
        found = {(why, shape) for why, shape in found if "layers" not in why and np.prod(shape) * tensor > 208 * 40}
        given = [
            sorted(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(Abstract(axes).programs.params_like())
        ]
        found = {(why, shape) for why, shape in found if sorted(shape) not in given}  # split otherwise, over the model's width
    assert not found
    assert "involuntary full rematerialization" not in capfd.readouterr().err.lower()
    if name in ("init", "update", "fit"):
        params = compiled.output_shardings if name == "init" else compiled.output_shardings[0].params
        shapes = jax.tree.leaves(Abstract(axes).programs.param_shapes)
        for leaf, sharding in zip(shapes, jax.tree.leaves(params), strict=True):
            split = 1 if leaf.ndim == 2 and leaf.shape[0] == WIDE.num_layers or leaf.ndim == 1 else 8 // axes.get("data", 1)
            assert np.prod(sharding.shard_shape(leaf.shape)) * split == leaf.size


def test_an_involuntary_copy_is_told_of(capfd):
    """The other control: the warning that the test above looks for is there where a program cannot be split as it says."""
    mesh = layout(fsdp=4, tensor=2).mesh

    def awkward(x):
        x = jax.lax.with_sharding_constraint(jnp.sin(x), NamedSharding(mesh, PartitionSpec(None, ("fsdp", "tensor"))))
        split = NamedSharding(mesh, PartitionSpec("tensor", "fsdp", None))
        return jax.lax.with_sharding_constraint(jnp.sin(x).reshape(4, 8, 32), split)

    jax.jit(awkward).lower(jnp.ones((32, 32))).compile()
    assert "involuntary full rematerialization" in capfd.readouterr().err.lower()


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("embed", "all layers' weights"),
        ("mlp", "mlp"),
        ("rows", "activations of all rows"),
        ("sequence", "activations of whole sequences"),
        pytest.param("heads", "heads", marks=pytest.mark.slow),
        pytest.param("vocab", "vocabulary", marks=pytest.mark.slow),
        pytest.param("lookup", "vocabulary", marks=pytest.mark.slow),
    ],
)
def test_what_is_whole_is_found(broken, why, monkeypatch):
    """The control of the test above: without one of the rules, or with the table looked up before it is gathered."""
    if broken == "lookup":

        def embedded(self, params, tokens):
            return self.constrain(jnp.take(params["embed"], tokens, axis=0), ("rows", None, None))

        monkeypatch.setattr(Transformer, "_embedded", embedded)
    else:
        rules = tuple((name, () if name == broken else axes) for name, axes in TRAINING)
        monkeypatch.setattr(programs_module, "TRAINING", rules)
    axes = {"fsdp": 2, "context": 2, "tensor": 2} if broken == "sequence" else {"fsdp": 4, "tensor": 2}
    found = whole_arrays(Abstract(axes).compiled("update" if broken == "lookup" else "score"), 2, axes.get("context", 1))
    assert why in {why for why, _ in found}


def packed_rows(width: int) -> Packed:
    """Rows of two segments and some padding."""
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(0, TINY.vocab_size, (2, 8, width), np.int32)
    segments = np.repeat([[1] * 5 + [2] * (width - 7) + [0] * 2], 8, axis=0).astype(np.int32)
    positions = np.where(segments == 2, np.arange(width) - 5, np.arange(width)).astype(np.int32)
    return Packed(tokens, targets, segments > 0, segments, positions)


@pytest.mark.parametrize("attention", ["auto", pytest.param("splash", marks=pytest.mark.slow)])
def test_splitting_sequences_changes_no_number(attention, one, batch):
    """Completions of 12 tokens in two parts; the prompts' 11 stay whole."""
    split = Policy(MeshConfig(fsdp=2, context=2, tensor=2), 8, compute=replace(Policy.COMPUTE, attention=attention))
    assert split.programs.model.context == 2
    np.testing.assert_allclose(split.score(one.rollout), one.score(one.rollout), atol=1e-5)
    for got, expected in (
        (split.update(batch), one.update(batch)),
        (split.fit(packed_rows(12)), one.fit(packed_rows(12))),
    ):
        for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(expected[0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max() + 1e-7)
        assert got[2] == pytest.approx(expected[2], abs=1e-5)
    if attention == "splash":  # the slow one
        np.testing.assert_array_equal(split.sample().completions, one.rollout.completions)


def test_sequences_that_do_not_divide_stay_whole_or_are_refused():
    parts = layout(context=4)
    assert parts.spec(("rows", "sequence", None), (2, 8, 3)) == PartitionSpec(("data", "fsdp"), "context", None)
    assert parts.spec(("rows", "sequence", None), (2, 7, 3)) == PartitionSpec(("data", "fsdp"), None, None)
    parts.check_length("grpo.sampling.max_completion_tokens", 8)
    with pytest.raises(
        UserError, match="max_completion_tokens=10 cannot be split over mesh.context=4: make it a multiple of 4"
    ):
        parts.check_length("grpo.sampling.max_completion_tokens", 10)
    config = Config(
        stages=(SFTStage([], batch_size=8, sequence_length=10),),
        run_dir="r",
        tokenizer=("a",),
        model=TINY,
        mesh=MeshConfig(context=4),
    )
    with pytest.raises(UserError, match="sft.sequence_length=10 cannot be split"):
        SFT(config, config.stages[0], SimpleNamespace(layout=parts), None)
    stage = GRPOStage([], None, sampling=SamplingConfig(max_completion_tokens=10))
    with pytest.raises(UserError, match="grpo.sampling.max_completion_tokens=10 cannot be split"):
        GRPO(config, stage, SimpleNamespace(layout=parts), None, None)
    with pytest.raises(UserError, match="mesh.context=3: give 1, 2, 4 or 8"):
        MeshConfig(context=3)
