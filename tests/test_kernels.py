"""Kernels against the plain path, forward and backward, emulated on CPU: alone, packed, left-padded, after a shared prompt."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, Policy

from jaxrl_ml.config import ComputeConfig, MeshConfig
from jaxrl_ml.models.attention import attention, segment_mask
from jaxrl_ml.models.kernels import Causal, Kernel
from jaxrl_ml.programs import Programs, resolve_kernel
from jaxrl_ml.sharding import Layout, make_mesh
from jaxrl_ml.types import UserError

N, K, H = 4, 2, 8
KERNELS = [Kernel(name, interpret=True) for name in ("splash", "cudnn")]
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def with_gradients(attend, probe, arrays):
    """Output, and gradients of a loss over what `probe` does not leave out."""

    def loss(*arrays):
        out = attend(*arrays)
        return (out * probe).sum(), out

    (_, out), gradients = jit(jax.value_and_grad(loss, argnums=tuple(range(len(arrays))), has_aux=True))(*arrays)
    return out, gradients


def assert_same(kernel, plain, probe, arrays):
    got, expected = (with_gradients(attend, probe, arrays) for attend in (kernel, plain))
    read = np.broadcast_to(np.asarray(probe) != 0, got[0].shape)
    np.testing.assert_allclose(np.asarray(got[0])[read], np.asarray(expected[0])[read], atol=2e-6)
    for a, b in zip(got[1], expected[1], strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("c", [5, 130])
def test_packed_and_padded_sequences_equal_the_plain_path(kernel, c):
    """130 is one block and a bit; the rows are packed, left-padded, right-padded and whole."""
    segments = np.ones((4, c), np.int32)
    segments[0, 2:] = 2
    segments[1, :3] = 0
    segments[2, 4:] = 0
    segments = jnp.asarray(segments)
    q, k, v, probe = draw((4, N, c, H), (4, K, c, H), (4, K, c, H), (4, N, c, H))
    probe = probe * (segments > 0)[:, None, :, None]
    assert_same(
        lambda q, k, v: kernel(q, k, v, Causal(segments)),
        lambda q, k, v: attention(q, k, v, segment_mask(segments)),
        probe,
        (q, k, v),
    )


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(("c", "P", "G"), [(5, 7, 3), (130, 140, 2), (4, 0, 2)])
def test_rows_after_a_shared_prompt_equal_the_plain_path(kernel, c, P, G):
    Q = 2
    prompt_mask = jnp.arange(P)[None] >= jnp.array([[0], [P // 2]])
    q, k, v, prompt_k, prompt_v, probe = draw((Q * G, N, c, H), *[(Q * G, K, c, H)] * 2, *[(Q, K, P, H)] * 2, (Q * G, N, c, H))
    one = jnp.ones((1, c), jnp.int32)
    kernel_of = lambda q, k, v, *prompt: kernel(q, k, v, Causal(one), (*prompt, prompt_mask) if prompt else None)  # noqa: E731
    plain_of = lambda q, k, v, *prompt: attention(q, k, v, segment_mask(one), (*prompt, prompt_mask) if prompt else None)  # noqa: E731
    assert_same(kernel_of, plain_of, probe, (q, k, v, *((prompt_k, prompt_v) if P else ())))
    if not P:
        nothing = (prompt_k, prompt_v, prompt_mask)
        np.testing.assert_array_equal(kernel(q, k, v, Causal(one), nothing), kernel(q, k, v, Causal(one)))


def test_what_is_masked_has_no_influence():
    """Keys of the padding, of other segments and of the future are set to rubbish, and nothing moves."""
    kernel, c = KERNELS[0], 12
    segments = jnp.array([[0] * 3 + [1] * 4 + [2] * 5])
    q, k, v = draw((1, N, c, H), (1, K, c, H), (1, K, c, H))
    run = jit(lambda k, v: kernel(q, k, v, Causal(segments)))
    usual = np.asarray(run(k, v))
    rubbish = (jnp.arange(c) < 7) | (jnp.arange(c) > 9)
    changed = np.asarray(run(*(jnp.where(rubbish[None, None, :, None], 1e3, x) for x in (k, v))))
    np.testing.assert_array_equal(changed[:, :, 7:10], usual[:, :, 7:10])
    assert np.abs(changed - usual)[:, :, [3, 11]].min(axis=-1).max() > 1


@pytest.fixture(scope="module")
def splash() -> Policy:
    """The cube of conftest with splash attention, emulated: data 2 × fsdp 2 × tensor 2."""
    return Policy(MeshConfig(fsdp=2, tensor=2), 8, compute=replace(Policy.COMPUTE, attention="splash"))


def test_a_sharded_policy_with_splash_scores_as_the_plain_one(one, splash):
    assert splash.programs.model.kernel == Kernel("splash", splash.layout.local, interpret=True)
    np.testing.assert_allclose(splash.score(one.rollout), one.score(one.rollout), atol=2e-5)


@pytest.mark.slow
def test_a_sharded_policy_with_splash_learns_as_the_plain_one(one, splash, batch):
    got, expected = splash.update(batch), one.update(batch)
    for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max() + 1e-7)
    assert got[2]["policy/loss"] == pytest.approx(expected[2]["policy/loss"], abs=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_are_split_over_tensor_and_few_kv_heads_repeated(kv_heads):
    """Every query head meets the keys of its own group, whatever device it lies on."""
    layout = Layout(make_mesh(MeshConfig(data=2, tensor=4)))
    q, k, v, probe = draw((2, 8, 6, H), (2, kv_heads, 6, H), (2, kv_heads, 6, H), (2, 8, 6, H))
    causal = Causal(jnp.ones((1, 6), jnp.int32))
    got, expected = (
        with_gradients(lambda q, k, v, kernel=kernel: kernel(q, k, v, causal), probe, (q, k, v))
        for kernel in (Kernel("cudnn", layout.local, interpret=True), Kernel("cudnn", interpret=True))
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_the_kernel_is_chosen_by_platform_or_refused_by_name():
    def resolve(name, platform, dtype=jnp.bfloat16, head_dim=64, heads=(8, 2), **axes):
        sizes = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | axes
        mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]), shape=sizes)
        config = replace(TINY, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim)
        kernel = resolve_kernel(name, dtype, Layout(mesh), config)
        return kernel and (kernel.name, kernel.interpret)

    assert [resolve("auto", platform) for platform in ("cpu", "tpu", "gpu")] == [None, ("splash", False), ("cudnn", False)]
    assert resolve("auto", "gpu", jnp.float32) is None
    assert resolve("auto", "gpu", head_dim=12) is None
    assert resolve("plain", "tpu") is None
    assert resolve("splash", "cpu") == ("splash", True)
    # A context axis: heads are exchanged for sequences, so they must divide; the plain path divides the queries.
    assert resolve("auto", "tpu", tensor=2, context=4) == ("splash", False)
    assert resolve("auto", "tpu", heads=(12, 2), context=8) is None
    assert resolve("auto", "tpu", heads=(12, 3), context=4) is None
    assert resolve("auto", "cpu", context=2) is None
    for name, platform, changes in (
        ("splash", "gpu", {}),
        ("cudnn", "cpu", {}),
        ("cudnn", "gpu", {"dtype": jnp.float32}),
        ("splash", "tpu", {"heads": (12, 2), "context": 8}),
    ):
        with pytest.raises(UserError, match=f"compute.attention={name} needs .*here are {platform}.*use auto"):
            resolve(name, platform, **changes)
    assert Programs(TINY, ComputeConfig(), make_mesh(MeshConfig())).model.kernel is None


@pytest.mark.parametrize(("c", "P"), [(5, 0), (13, 6)])
def test_cudnn_lowers_for_cuda_forward_and_backward(c, P, monkeypatch):
    """Lowered only, with cuDNN said to be there: its own checks of shapes and types pass, odd lengths too."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    kernel = Kernel("cudnn")

    def total(q, k, v, *prompt):
        prompt = (*prompt, jnp.ones((2, P), bool)) if prompt else None
        return kernel(q, k, v, Causal(jnp.ones((1, c), jnp.int32)), prompt).astype(jnp.float32).sum()

    shapes = [(4, N, c, 64), *[(4, K, c, 64)] * 2, *[(2, K, P, 64)] * (2 if P else 0)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    traced = jax.jit(jax.grad(total, argnums=tuple(range(len(arrays))))).trace(*arrays)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1


ON_TPU = """
import re
import jax
import numpy as np
from jax.experimental import topologies
import optax
from jaxrl_ml.config import ComputeConfig, GRPOStage, MeshConfig, ModelConfig, SamplingConfig, SFTStage
from jaxrl_ml.programs import Programs
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.types import Batch, Packed, Prompts, Rollout

jax.config.update("jax_numpy_rank_promotion", "raise")
chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), chips)
model = ModelConfig(vocab_size=256, embed_dim=256, mlp_dim=512, num_heads=8, num_kv_heads=2, head_dim=64)
Q, B, P, C = 4, 8, 257, 768

for attention, kinds in (("auto", 2), ("plain", 1)):
    programs = Programs(model, ComputeConfig(dtype="bfloat16", remat="full", attention=attention), mesh)
    layout, optimizer = programs.layout, optax.adam(1e-5)
    rows = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=layout.rows(len(shape)))
    scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype, sharding=layout.replicated)
    prompts = Prompts(rows("int32", Q, P), rows("bool", Q, P), rows("uint32", Q))
    whole = {kind: rows(kind, B, C) for kind in ("int32", "bool", "float32")}
    rollout = Rollout(prompts, whole["int32"], rows("int32", B), whole["bool"], whole["float32"], rows("bool", B))
    batch = Batch(rollout, whole["float32"], whole["bool"], whole["float32"])
    packed = Packed(*[whole[kind] for kind in ("int32", "int32", "bool", "int32", "int32")])
    stage = GRPOStage(None, None, prompts_per_step=Q, group_size=B // Q, sampling=SamplingConfig(max_completion_tokens=C))
    state = programs.state_shapes(optimizer)
    for program, arguments in (
        (programs.update(stage, optimizer), (batch, scalar("int32"), scalar("float32"), None)),
        (programs.fit(SFTStage(None, batch_size=B), optimizer), (packed,)),
    )[:kinds]:
        text = program.lower(state, *arguments).compile().as_text()
        sizes = [np.prod([int(n) for n in found.split(",")]) for found in re.findall(r"(?:f32|bf16|pred)\\[([0-9,]+)\\]", text)]
        print("FOUND", text.count("tpu_custom_call"), max(sizes))
    text = programs.gather.lower(programs.params_like()).compile().as_text()
    print("MOVED", *set(re.findall(r"= \\(?([a-z0-9]+)\\[[0-9,]*\\]\\S* (?:all|collective)-", text)))
"""


DECODE_ON_TPU = r"""
import re
from jax.experimental import topologies
from jaxrl_ml.config import ComputeConfig, Config, GRPOStage, MeshConfig, ModelConfig, SamplingConfig
from jaxrl_ml.planning.stages import planned
from jaxrl_ml.programs import Programs
from jaxrl_ml.sharding import make_mesh

mesh = MeshConfig(fsdp=2, tensor=4)
chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
model = ModelConfig(vocab_size=1024, embed_dim=256, mlp_dim=512, num_heads=28, num_kv_heads=4, head_dim=64)
sampling = SamplingConfig(max_prompt_tokens=129, max_completion_tokens=128)
stage = GRPOStage(None, None, prompts_per_step=16, group_size=4, sampling=sampling)
config = Config(stages=(stage,), run_dir="x", model=model, tokenizer=("a",), mesh=mesh)
programs = Programs(model, ComputeConfig(dtype="bfloat16"), make_mesh(mesh, chips))
(decode,) = (program for program in planned(programs, config, stage) if program.name == "grpo/decode")
for line in decode.lower().compile().as_text().splitlines():
    found = re.search(r'= .*(?:all|collective)-[a-z-]+\(.*op_name="[^"]*/attention/([a-z_]+)', line)
    if found:
        print("FOUND", found[1])
"""


def on_tpu(program: str) -> list[str]:
    """The lines that a program prints that compiles for TPUs which are not there."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (pip install 'jax[tpu]'), but no TPU")
def test_a_decoded_token_sums_heads_over_a_tpu_mesh_and_exchanges_nothing_else_in_attention():
    """Compiled only. CPU's partitioner finds nothing to exchange there, so that only a TPU's shows it."""
    assert on_tpu(DECODE_ON_TPU) == ["FOUND dot_general"] * 2  # one a layer


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (pip install 'jax[tpu]'), but no TPU")
def test_splash_compiles_for_a_tpu_mesh_forward_and_backward():
    """Compiled only, for eight chips of a v5e: the kernels are there, and the scores are not held."""
    lines = on_tpu(ON_TPU)
    found = [tuple(map(int, line.split()[1:])) for line in lines if line.startswith("FOUND")]
    assert {line for line in lines if line.startswith("MOVED")} == {"MOVED bf16"}  # weights, for sampling
    update, fit, plain = found
    # Forward, once more for the backward pass, dq, dkv; of the prompts, and of the rows after them.
    assert (update[0], fit[0], plain[0]) == (8, 4, 0)
    scores = 2 * 4 * 768 * 768  # of a device's rows and heads
    assert max(update[1], fit[1]) < scores <= plain[1]
