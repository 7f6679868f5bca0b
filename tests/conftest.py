"""Eight fake CPU devices for the whole suite, strict numerics, and one small policy per mesh, compiled once and shared."""

from __future__ import annotations

import os

# Compiling dominates the suite: without LLVM's optimisations it takes half the time, and the numbers agree to rounding.
_FLAGS = " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _FLAGS
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import atexit
import gc
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)
# Runs keep their compiled programs in a cache of their own; tests share one, since most of them train the same programs.
_CACHE = tempfile.mkdtemp(prefix="jaxrl_ml-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

from jaxrl_ml import checkpoint, sampler
from jaxrl_ml.config import ComputeConfig, GRPOStage, LossConfig, MeshConfig, ModelConfig, SamplingConfig, SFTStage
from jaxrl_ml.config import model as model_config
from jaxrl_ml.models import hf
from jaxrl_ml.programs import Programs
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.types import Batch, Packed, Prompts, Rollout, TagTrie, TrainState

COLUMNS = model_config.COLUMNS  # of the library
model_config.COLUMNS = 8  # small vocabularies are cut in slices too

TINY = ModelConfig(vocab_size=48, num_layers=2, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=2, head_dim=8)


class Policy:
    """A tiny model on one mesh: every program is compiled at most once a test run."""

    Q, G, P, C, V = 8, 4, 12, 12, TINY.vocab_size
    STOP_IDS = (5, 6)
    FIRST, SECOND = range(7, 15), range(20, 34)  # a stop "string": any of FIRST, then any of SECOND
    LOSS = LossConfig(kl="k3", kl_coef=0.1, importance_cap=2.0, entropy_coef=0.01)

    COMPUTE = ComputeConfig(logits_mib=0.004)  # on a device: at most 16 columns of 64 tokens

    def __init__(
        self, mesh: MeshConfig, num_devices: int, config: ModelConfig = TINY, compute: ComputeConfig = COMPUTE
    ) -> None:
        self.programs = Programs(config, compute, make_mesh(mesh, jax.devices()[:num_devices]))
        self.layout = self.programs.layout
        self.put, self.put_rows = self.layout.put, self.layout.put_rows
        self.sgd = optax.sgd(1.0)  # the change of the parameters is the gradient

    @cached_property
    def params(self) -> Any:
        return self.programs.init(self.put(jax.random.key(0)))

    @cached_property
    def weights(self) -> Any:
        return self.programs.gather(self.params)

    @classmethod
    def prompts(cls, width: int = P) -> Prompts:
        """Prompts of 1 to P tokens on the host, left-padded to `width`; the padding is not zero."""
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, cls.V, (cls.Q, cls.P), np.int32)
        lengths = np.array([1, 2, 12, 5, 7, 3, 12, 9])
        tokens = np.pad(tokens, ((0, 0), (width - cls.P, 0)), constant_values=11)
        mask = np.arange(width)[None] >= width - lengths[:, None]
        return Prompts(tokens, mask, np.arange(cls.Q, dtype=np.uint32))

    @classmethod
    def stop_table(cls) -> np.ndarray:
        table = np.zeros((3, cls.V), np.int16)
        table[:2, cls.FIRST] = 1
        table[1, cls.SECOND] = 2
        table[:, cls.STOP_IDS] = 2
        table[2] = 2
        return table

    def sample(
        self,
        prompts: Prompts | None = None,
        sampling: SamplingConfig | None = None,
        words: tuple[int, ...] = (0, 1, 2, 3),
        table: np.ndarray | None = None,
        params: Any = None,
        trie: TagTrie | None = None,
        tag_width: int = 0,
    ) -> Rollout:
        """A rollout on the host; only shapes and `sampling.truncates` compile anew."""
        sampling = sampling or SamplingConfig()
        words = self.put(np.array(words, np.uint32))
        table = self.put(self.stop_table() if table is None else table)
        settings = self.put(sampler.settings_of(sampling))
        prompts = self.put_rows(self.prompts() if prompts is None else prompts)
        static = {"truncates": sampling.truncates, "group_size": self.G, "width": self.C, "tag_width": tag_width}
        weights = self.weights if params is None else self.programs.gather(params)
        return jax.device_get(self.programs.sample(weights, prompts, words, table, settings, self.put(trie), **static))

    @cached_property
    def rollout(self) -> Rollout:
        return self.sample()

    @cached_property
    def _score(self) -> Any:
        stage = GRPOStage(None, None, prompts_per_step=self.Q, group_size=self.G, num_microbatches=2)
        return self.programs.score(stage)

    def score(self, rollout: Rollout, params: Any = None, temperature: float = 1.0, trie: TagTrie | None = None) -> np.ndarray:
        params = self.params if params is None else params
        rest = self.put(np.float32(temperature)), self.put(trie)
        return jax.device_get(self._score(params, self.put_rows(rollout), *rest))

    def stage(self, **changes: Any) -> GRPOStage:
        sampling = SamplingConfig(max_completion_tokens=self.C)
        values = {"prompts_per_step": self.Q, "group_size": self.G, "loss": self.LOSS, "sampling": sampling}
        return GRPOStage(None, None, **values | changes)

    @cached_property
    def _update(self) -> Any:
        return self.programs.update(self.stage(), self.sgd)

    @cached_property
    def _fit(self) -> Any:
        return self.programs.fit(SFTStage(None, batch_size=8), self.sgd)

    def copy(self, tree: Any) -> Any:
        """A copy that may be donated."""
        return jax.tree.map(lambda leaf: leaf.copy(), tree)

    def _step(self, program: Any, data: Any, *rest: Any, params: Any = None) -> tuple[Any, Any, dict[str, float]]:
        params = self.params if params is None else params
        state = TrainState(self.put(np.int32(0)), self.copy(params), self.sgd.init(params))
        state, metrics = program(state, self.put_rows(data), *rest)
        grads = jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), params, state.params)
        return grads, state, {name: float(value) for name, value in metrics.items()}

    def update(
        self, batch: Batch, params: Any = None, program: Any = None, trie: TagTrie | None = None
    ) -> tuple[Any, Any, dict[str, float]]:
        """Gradients (host), the new state and the metrics of one GRPO update by plain gradient descent of rate 1."""
        rest = self.put(np.int32(0)), self.put(np.float32(1.0)), self.put(trie)
        return self._step(self._update if program is None else program, batch, *rest, params=params)

    def fit(self, packed: Packed, program: Any = None) -> tuple[Any, Any, dict[str, float]]:
        """The same of one SFT update."""
        return self._step(self._fit if program is None else program, packed)


@pytest.fixture(scope="session")
def one() -> Policy:
    """One device."""
    return Policy(MeshConfig(), 1)


@pytest.fixture(scope="session")
def eight() -> Policy:
    """Eight devices: fsdp 4 × tensor 2."""
    return Policy(MeshConfig(fsdp=4, tensor=2), 8)


@pytest.fixture(scope="session")
def cube() -> Policy:
    """Eight devices: data 2 × fsdp 2 × tensor 2."""
    return Policy(MeshConfig(fsdp=2, tensor=2), 8)


@pytest.fixture(scope="session")
def batch(one: Policy) -> Batch:
    """A GRPO batch on the host: an off-policy one, with everything in it that a loss can read."""
    rollout = one.rollout
    rng = np.random.default_rng(1)
    shape = rollout.completions.shape
    mask = rollout.action_mask
    noise = [np.where(mask, rng.normal(scale=0.1, size=shape), 0).astype(np.float32) for _ in range(2)]
    logprobs = one.score(rollout)
    advantages = np.repeat(rng.normal(size=(shape[0], 1)), shape[1], axis=1).astype(np.float32)
    loss_mask = mask & (np.arange(shape[0]) % 7 != 3)[:, None]
    return Batch(rollout, advantages, loss_mask, logprobs + noise[0], logprobs + noise[1])


def lines_run(call: Callable[[], object]) -> int:
    """How many lines of Python a call runs: its cost, told without a clock."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    gc.disable()  # it would run callbacks and finalisers, which are not the call's
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def bytes_alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that takes the bytes of new arrays: whenever one was read, and whenever one is fetched to be written."""
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    found: list[int] = []

    def count(value: Any) -> Any:
        found.append(sum(array.nbytes for array in jax.live_arrays()) - before)
        return value

    fetch, read = hf.fetch, checkpoint._read
    monkeypatch.setattr(hf, "fetch", lambda leaf, *rest: fetch(count(leaf), *rest))
    monkeypatch.setattr(checkpoint, "_read", lambda *arguments: count(read(*arguments)))
    return found


def assert_trees_close(actual: Any, expected: Any, **tolerance: float) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance, err_msg=jax.tree_util.keystr(path))
