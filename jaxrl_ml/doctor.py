"""`python -m jaxrl_ml.doctor`: what this machine offers, and whether the library works on it; run it first on new hardware.

Out: a table of versions, devices, memory, measured rates, the parity of attention with a float64 reference, and a run of two
SFT and two GRPO steps on all devices. Exit status 1 where a check failed, each with one line on standard error that gives the
remedy. Rates are the best of some repeats; on CPU the copy's is that of writing fresh pages. One process: on a machine of
several hosts it tells about the one that it runs on.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from jaxrl_ml.cli import run_command
from jaxrl_ml.types import Example, UserError, require

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
PLUGINS = {"gpu": ("jax-cuda12-plugin", "jax-cuda13-plugin"), "tpu": ("libtpu",)}
_TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE")
_GOOGLE, _GOOGLE_NETWORK_CARD = "0x1ae0", "0x0042"  # PCI ids: of the vendor's devices, those that are no network cards are TPUs


class Finding(NamedTuple):
    """What a check found: its result, or the problem with its remedy."""

    check: str
    result: str
    problem: str | None
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    return tyro.cli(_diagnose, args=argv, prog="python -m jaxrl_ml.doctor", description=__doc__)


def _diagnose() -> int:
    findings = [_find(name, check) for name, check in CHECKS.items()]
    table = Table("check", "found", "s", title="jaxrl_ml doctor")
    for name, result, problem, seconds in findings:
        table.add_row(name, result if problem is None else "FAILED", f"{seconds:.1f}")
    Console(highlight=False, markup=False).print(table)
    problems = [finding for finding in findings if finding.problem is not None]
    for finding in problems:
        print(f"error: {finding.check}: {finding.problem}", file=sys.stderr)
    return 1 if problems else 0


def _find(name: str, check: Callable[[], str]) -> Finding:
    started, result, problem = time.perf_counter(), "", None
    try:
        result = check()
    except UserError as error:
        problem = str(error)
    except Exception as error:  # whatever a driver, a compiler or a file system raises
        lines = str(error).strip().splitlines() or [""]
        problem = f"{type(error).__name__}: {lines[0][:300]}"
    return Finding(name, result, problem, time.perf_counter() - started)


def versions() -> str:
    """Versions of Python and of what matters here; raises UserError where jaxlib and an accelerator's plugin differ."""
    found = _installed((*PACKAGES, *PLUGINS["gpu"], *PLUGINS["tpu"]))
    for plugin in PLUGINS["gpu"]:
        require(
            found.get(plugin, found["jaxlib"]) == found["jaxlib"],
            f"{plugin} {found.get(plugin)} does not fit jaxlib {found['jaxlib']}: pip install -U 'jax[{plugin.split('-')[1]}]'",
        )
    return ", ".join(f"{name} {version}" for name, version in {"python": platform.python_version(), **found}.items())


def _installed(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def visible_accelerators(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The accelerators that the system shows under `root` or in the environment: {"gpu" or "tpu": what tells}."""
    found = {}
    cards = sorted(root.glob("dev/nvidia[0-9]*"))
    tool = shutil.which("nvidia-smi", path=environment.get("PATH", ""))
    if cards or tool:
        found["gpu"] = str(cards[0]) if cards else tool
    chips = sorted(root.glob("dev/accel[0-9]*"))
    for card in sorted(root.glob("sys/bus/pci/devices/*/vendor")):
        if card.read_text().strip() == _GOOGLE and (card.parent / "device").read_text().strip() != _GOOGLE_NETWORK_CARD:
            chips.append(card.parent)
    told = [name for name in _TPU_VARIABLES if environment.get(name)]
    if chips or told:
        found["tpu"] = str(chips[0]) if chips else told[0]
    return found


def check_backend(used: str, visible: Mapping[str, str], installed: Sequence[str], asked: str) -> str:
    """A note on an accelerator that JAX was told not to use, or nothing.

    used: JAX's platform; visible: `visible_accelerators`; installed: names of packages; asked: JAX_PLATFORMS. Raises UserError
    where an accelerator is visible that JAX does not use unasked.
    """
    idle = {kind: where for kind, where in visible.items() if used == "cpu"}
    if idle and asked:
        return f"; JAX_PLATFORMS={asked} leaves {', '.join(idle.values())} unused"
    for kind, where in idle.items():
        plugin = next((name for name in PLUGINS[kind] if name in installed), None)
        extra, what = {"gpu": ("cuda12", "an NVIDIA GPU"), "tpu": ("tpu", "a TPU")}[kind]
        if plugin is None:
            raise UserError(
                f"{what} is visible ({where}) but jax runs on the CPU, as jax[{extra}] is missing: "
                f"uv sync --extra {extra}, or pip install 'jax[{extra}]'"
            )
        remedy = {
            "gpu": "nvidia-smi must work for this user, with driver 525 or later for CUDA 12; unset LD_LIBRARY_PATH",
            "tpu": "another process may hold it (lsof -w /dev/accel* /dev/vfio/*); every host of a slice must run the command",
        }[kind]
        raise UserError(f"{what} is visible ({where}) and {plugin} is installed, but jax runs on the CPU: {remedy}")
    return ""


def devices() -> str:
    """The devices that JAX uses; raises UserError as `check_backend` does."""
    import jax

    found = jax.devices()
    used = jax.default_backend()
    installed = list(_installed([name for names in PLUGINS.values() for name in names]))
    visible = visible_accelerators(Path("/"), os.environ)
    note = check_backend(used, visible, installed, os.environ.get("JAX_PLATFORMS", ""))
    return f"{len(found)} × {found[0].device_kind} ({used}), {os.cpu_count()} host cores{note}"


def memory() -> str:
    """The memory of the host and, where it has its own, of each device."""
    import jax

    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    own = [limit for limit in limits if limit]
    told = f"{min(own) / 2**30:.1f} GiB a device that JAX may use, " if own else ""
    return f"{told}{host / 2**30:.1f} GiB on the host"


def _best_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """The shortest of some calls, each until its result is there, after one that compiles."""
    import jax

    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def matmul_rate(dtype: str, device: Any) -> float:
    """FLOP/s of a square product on a device, at JAX's default precision: as large as takes 20 ms, or 16,384 wide."""
    import jax
    import jax.numpy as jnp

    def seconds_of(size: int) -> float:
        with jax.default_device(device):
            x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
            return _best_seconds(lambda: x @ x)

    size = 256 if device.platform == "cpu" else 4096
    while (seconds := seconds_of(size)) < 0.02 and size < 16384:
        size *= 2
    return 2 * size**3 / seconds


def copy_rate(device: Any) -> float:
    """Bytes/s, read and written, of a pass over a buffer of 64 MiB (on accelerators 1 GiB)."""
    import jax.numpy as jnp

    x = jnp.ones(2**24 if device.platform == "cpu" else 2**28, jnp.float32, device=device)
    return 2 * x.nbytes / _best_seconds(lambda: -x)


def _on_each_device(rate: Callable[[Any], float], unit: str, scale: float) -> str:
    """The rate on this host's devices, on CPU on the first: fake devices share the cores."""
    import jax

    found = [rate(device) / scale for device in jax.local_devices()[: 1 if jax.default_backend() == "cpu" else None]]
    if len(found) == 1:
        return f"{found[0]:.3g} {unit}"
    return f"{min(found):.3g} to {max(found):.3g} {unit} a device"


def matmul_float32() -> str:
    return _on_each_device(lambda device: matmul_rate("float32", device), "TFLOP/s", 1e12)


def matmul_bfloat16() -> str:
    return _on_each_device(lambda device: matmul_rate("bfloat16", device), "TFLOP/s", 1e12)


def copy() -> str:
    return _on_each_device(copy_rate, "GB/s", 1e9)


def attention_reference(q, k, v, mask, prompt, probe) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """`models.attention.attention` in numpy, in its arguments' precision, and the gradients of (output · probe).sum().

    The gradients are those of q, k, v and of the prompt's keys and values, where there is one; shapes as in `attention`.
    """
    import numpy as np

    B, N, c, H = q.shape
    K, P = k.shape[1], 0
    seen = np.broadcast_to(mask, (B, *mask.shape[1:]))
    if prompt is not None:
        prompt_k, prompt_v, prompt_mask = prompt
        Q, P = prompt_mask.shape
        k, v = (np.concatenate([np.repeat(own, B // Q, 0), rest], 2) for own, rest in ((prompt_k, k), (prompt_v, v)))
        before = np.broadcast_to(np.repeat(prompt_mask, B // Q, 0)[:, None], (B, c, P))
        seen = np.concatenate([before, seen], 2)
    k, v = np.repeat(k, N // K, 1), np.repeat(v, N // K, 1)
    scores = np.where(seen[:, None], np.einsum("bnch,bnsh->bncs", q, k) / H**0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    of_weights = np.einsum("bnch,bnsh->bncs", probe, v)
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True)) / H**0.5
    of_q = np.einsum("bncs,bnsh->bnch", of_scores, k)
    per_head = np.einsum("bncs,bnch->bnsh", of_scores, q), np.einsum("bncs,bnch->bnsh", weights, probe)
    of_k, of_v = (x.reshape(B, K, N // K, -1, H).sum(2) for x in per_head)
    grads = [of_q, of_k[:, :, P:], of_v[:, :, P:]]
    if prompt is not None:
        grads += [x[:, :, :P].reshape(Q, B // Q, K, P, H).sum(1) for x in (of_k, of_v)]
    return np.einsum("bncs,bnsh->bnch", weights, v), tuple(grads)


def attention_parity() -> str:
    """The largest error of attention on this device, relative to the largest value, over the ways it is used.

    Those are: alone (prefill, SFT) and after a shared prompt (score, update), both with gradients, and one token after a prompt
    (decoding), each in float32 at the highest precision and in bfloat16, there by this platform's kernel if it has one. Raises
    UserError where one is off by more than 1e-4 or 3e-2.
    """
    import numpy as np

    B, Q, N, K, H, P = 8, 2, 4, 2, 64, 128
    rng = np.random.default_rng(0)
    worst = {}
    for dtype, limit in (("float32", 1e-4), ("bfloat16", 3e-2)):
        for use, c, S, shared in (("alone", 128, 128, False), ("after a prompt", 128, 128, True), ("one token", 1, 128, True)):
            mask = np.arange(S)[None] <= np.arange(S - c, S)[:, None] if c > 1 else np.arange(S)[None] < 100
            before = np.arange(P)[None] >= rng.integers(0, P, (Q, 1))  # left padding
            shapes = [(B, N, c, H), (B, K, S, H), (B, K, S, H), *([(Q, K, P, H)] * 2 if shared else [])]
            arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
            error = _attention_error(arrays, mask[None], before, rng.normal(size=shapes[0]).astype(np.float32), dtype)
            require(
                error <= limit,  # also where it is not a number
                f"attention {use} in {dtype} is off by {error:.1g} of the largest value, more than {limit:g}: please report "
                "this table",
            )
            worst[dtype] = max(worst.get(dtype, 0.0), error)
    return ", ".join(f"{dtype} within {error:.1g}" for dtype, error in worst.items()) + " of float64, gradients too"


def _attention_error(arrays: list, mask: np.ndarray, before: np.ndarray, probe: np.ndarray, dtype: str) -> float:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxrl_ml.config import MeshConfig, ModelConfig
    from jaxrl_ml.models.attention import attention
    from jaxrl_ml.models.kernels import Causal
    from jaxrl_ml.programs import resolve_kernel
    from jaxrl_ml.sharding import Layout, make_mesh

    _, N, c, H = probe.shape
    model = ModelConfig(num_heads=N, num_kv_heads=arrays[1].shape[1], head_dim=H)
    layout = Layout(make_mesh(MeshConfig(), jax.local_devices()[:1]))
    kernel = resolve_kernel("auto", dtype, layout, model) if dtype == "bfloat16" and c > 1 else None
    attend, seen = (attention, jnp.asarray(mask)) if kernel is None else (kernel, Causal(jnp.ones((1, c), jnp.int32)))
    rounded = [jnp.asarray(x, dtype) for x in (*arrays, probe)]

    def total(*arrays):
        prompt = (*arrays[3:], jnp.asarray(before)) if len(arrays) > 3 else None
        mixed = attend(*arrays[:3], seen, prompt)
        return (mixed.astype(jnp.float32) * rounded[-1].astype(jnp.float32)).sum(), mixed

    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        if c == 1:
            found, mixed = (), total(*rounded[:-1])[1]
        else:
            found, mixed = jax.grad(total, argnums=tuple(range(len(arrays))), has_aux=True)(*rounded[:-1])
    *wide, wide_probe = (np.asarray(x, np.float64) for x in rounded)
    prompt = (*wide[3:], before) if len(wide) > 3 else None
    expected, grads = attention_reference(*wide[:3], mask, prompt, wide_probe)
    pairs = zip((mixed, *found), (expected, *grads[: len(found)]), strict=True)
    errors = [np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max() for a, b in pairs]
    return float(np.max(errors))  # not a number where one is not


def tiny_run() -> str:
    """Two steps of SFT and two of GRPO by the trainer in a temporary folder, on all devices, and its checkpoint.

    Raises UserError where a metric is not finite, or the sampler's log-probs are not the trainer's.
    """
    import jax

    from jaxrl_ml.checkpoint import Checkpoints
    from jaxrl_ml.train import train

    with tempfile.TemporaryDirectory(prefix="jaxrl_ml_doctor_") as name:
        config = _tiny_config(Path(name), len(jax.devices()))
        with contextlib.redirect_stdout(io.StringIO()):
            train(config, Path(__file__))
        lines = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
        with Checkpoints(Path(config.run_dir), config.checkpoint, read_only=True) as checkpoints:
            saved = checkpoints.steps()
    require(saved[-1:] == [config.num_steps], f"no checkpoint of step {config.num_steps} was written: it has {saved}")
    gap = check_metrics(lines, 1e-3 if jax.default_backend() == "cpu" else 0.1)  # float32, bfloat16
    return f"2 steps SFT, 2 steps GRPO on {len(jax.devices())} device(s), saved; sampler_gap {gap:.1g}"


def check_metrics(lines: Sequence[Mapping[str, Any]], limit: float) -> float:
    """The mean difference between the sampler's log-probs and the trainer's, in nats, of the worst step.

    Raises UserError where it is over `limit` or any metric is not finite.
    """
    for line in lines:
        wrong = [name for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
        require(not wrong, f"{', '.join(wrong)} of step {line['step']} is not finite: please report this table")
    gap = max(line["policy/sampler_gap"] for line in lines if "policy/sampler_gap" in line)
    require(
        gap <= limit, f"the sampler's log-probs are {gap:.1g} off the trainer's, more than {limit:g}: please report this table"
    )
    return gap


def _tiny_config(folder: Path, num_devices: int) -> Any:
    from jaxrl_ml.config import CheckpointConfig, Config, GRPOStage, LoggingConfig, ModelConfig, SamplingConfig, SFTStage

    task = [Example(str(n), "double", {"prompt": f"{n}*2="}, str(2 * n), completion=str(2 * n)) for n in range(50)]
    sampling = SamplingConfig(max_prompt_tokens=8, max_completion_tokens=8)
    return Config(
        run_dir=str(folder / "run"),
        tokenizer=tuple("0123456789*="),
        model=ModelConfig(vocab_size=16, embed_dim=64, mlp_dim=128, num_heads=2, num_kv_heads=1, head_dim=32),
        stages=(
            SFTStage(task, num_steps=2, batch_size=2 * num_devices, sequence_length=32),
            GRPOStage(task, _length_reward, num_steps=2, prompts_per_step=2 * num_devices, group_size=4, sampling=sampling),
        ),
        checkpoint=CheckpointConfig(keep=1),
        logging=LoggingConfig(console=False, tensorboard=False),
    )


def _length_reward(texts: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
    """What an untrained model varies in, so that there is something to learn."""
    import numpy as np

    return np.array([float(len(text)) for text in texts], np.float32)


CHECKS: dict[str, Callable[[], str]] = {
    "versions": versions,
    "devices": devices,
    "memory": memory,
    "matmul, float32": matmul_float32,
    "matmul, bfloat16": matmul_bfloat16,
    "copy": copy,
    "attention": attention_parity,
    "tiny run": tiny_run,
}


if __name__ == "__main__":
    run_command(main)
