"""The doctor: it finds what is broken, tells the remedy in one line, and its numbers are what they are called."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_ml import doctor, programs
from jaxrl_ml.models import attention as attention_module
from jaxrl_ml.models.kernels import Kernel
from jaxrl_ml.types import UserError


def test_a_sound_machine_passes_every_check(capsys, monkeypatch):
    """All of it, the run over eight devices included."""
    monkeypatch.setenv("COLUMNS", "300")
    before = jax.config.jax_compilation_cache_dir
    assert doctor.main([]) == 0
    shown, errors = capsys.readouterr()
    assert errors == ""
    assert "FAILED" not in shown
    assert all(f" {name} " in shown for name in doctor.CHECKS)
    assert f"jax {jax.__version__}" in shown
    assert "8 × cpu" in shown and "on 8 device(s), saved" in shown
    assert jax.config.jax_compilation_cache_dir == before


def test_what_fails_is_one_line_each_and_the_exit_status(capsys, monkeypatch):
    def broken():
        raise RuntimeError("the driver\nis gone")

    def refused():
        raise UserError("no memory: buy some")

    monkeypatch.setattr(doctor, "CHECKS", {"a": broken, "b": lambda: "fine", "c": refused})
    assert doctor.main([]) == 1
    shown, errors = capsys.readouterr()
    assert errors.splitlines() == ["error: a: RuntimeError: the driver", "error: c: no memory: buy some"]
    assert shown.count("FAILED") == 2 and "fine" in shown


@pytest.mark.parametrize("with_prompt", [False, True])
def test_the_reference_has_the_gradients_of_a_plain_softmax(with_prompt):
    B, Q, N, K, H, c, P = 4, 2, 4, 2, 8, 5, 3
    rng = np.random.default_rng(1)
    shapes = [(B, N, c, H), (B, K, c, H), (B, K, c, H), *([(Q, K, P, H)] * 2 if with_prompt else [])]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    probe = rng.normal(size=shapes[0]).astype(np.float32)
    mask, before = np.tril(np.ones((c, c), bool))[None], np.array([[True] * P, [False, True, True]])

    def plain(*arrays):
        q, k, v, *prompt = arrays
        seen = jnp.broadcast_to(mask, (B, c, c))
        if prompt:
            k, v = (jnp.concatenate([jnp.repeat(a, B // Q, 0), b], 2) for a, b in zip(prompt, (k, v), strict=True))
            seen = jnp.concatenate([jnp.broadcast_to(jnp.repeat(before, B // Q, 0)[:, None], (B, c, P)), seen], 2)
        k, v = jnp.repeat(k, N // K, 1), jnp.repeat(v, N // K, 1)
        scores = jnp.where(seen[:, None], jnp.einsum("bnch,bnsh->bncs", q, k) / H**0.5, -1e9)
        mixed = jnp.einsum("bncs,bnsh->bnch", jax.nn.softmax(scores, -1), v)
        return (mixed * probe).sum(), mixed

    grads, mixed = jax.grad(plain, argnums=tuple(range(len(arrays))), has_aux=True)(*arrays)
    prompt = (*arrays[3:], before) if with_prompt else None
    expected, expected_grads = doctor.attention_reference(*arrays[:3], mask, prompt, probe)
    for found, wanted in zip((mixed, *grads), (expected, *expected_grads), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def _unmasked(q, k, v, mask, prompt=None):
    return attention_module.attention.real(q, k, v, jnp.ones_like(mask), prompt)


def _forgets_the_prompt(q, k, v, mask, prompt=None):
    return attention_module.attention.real(q, k, v, mask)


def _gives_nan(q, k, v, mask, prompt=None):
    return attention_module.attention.real(q, k, v, mask, prompt).at[0, 0, 0, 0].set(jnp.nan)


def _loses_a_gradient(q, k, v, mask, prompt=None):
    return attention_module.attention.real(q, jax.lax.stop_gradient(k), v, mask, prompt)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (_unmasked, "attention alone in float32"),
        (_forgets_the_prompt, "attention after a prompt in float32"),
        (_gives_nan, "off by nan"),
        (_loses_a_gradient, "attention alone in float32"),
    ],
)
def test_wrong_attention_is_found(monkeypatch, broken, told):
    broken.real = attention_module.attention
    monkeypatch.setattr(attention_module, "attention", broken)
    with pytest.raises(UserError, match=told) as error:
        doctor.attention_parity()
    assert "\n" not in str(error.value)


class _Kernel(Kernel):
    """Takes a prompt's padding for its tokens."""

    def __call__(self, q, k, v, causal, prompt=None):
        return super().__call__(q, k, v, causal, prompt and (*prompt[:2], jnp.ones_like(prompt[2])))


def test_a_wrong_kernel_is_found(monkeypatch):
    """It is right alone, and that passes."""
    monkeypatch.setattr(programs, "resolve_kernel", lambda *asked: _Kernel("cudnn", interpret=True))
    with pytest.raises(UserError, match="attention after a prompt in bfloat16"):
        doctor.attention_parity()


def test_metrics_of_a_broken_run_are_refused():
    sft, grpo = {"step": 1, "stage": "sft", "sft/loss": 2.0}, {"step": 2, "stage": "grpo", "policy/sampler_gap": 1e-6}
    assert doctor.check_metrics([sft, grpo], limit=1e-3) == 1e-6
    with pytest.raises(UserError, match="log-probs are 0.5 off the trainer's, more than 0.001"):
        doctor.check_metrics([sft, grpo, grpo | {"policy/sampler_gap": 0.5}], limit=1e-3)
    with pytest.raises(UserError, match="sft/loss of step 1 is not finite"):
        doctor.check_metrics([sft | {"sft/loss": float("nan")}, grpo], limit=1e-3)


def test_rates_are_operations_and_bytes_by_the_second(monkeypatch):
    """A product is made larger until it takes 20 ms: at 51,200 rows a second that is 1,024 of them."""
    first = jax.devices()[0]
    monkeypatch.setattr(doctor, "_best_seconds", lambda call: len(call()) / 51_200)
    assert first.platform == "cpu"
    assert doctor.matmul_rate("float32", first) == 2 * 1024**3 / 0.02
    assert doctor.copy_rate(first) == 2 * 4 * 2**24 / (2**24 / 51_200)


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ({}, {}, {}),
        ({"dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidiactl": ""}, {}, {"gpu": "dev/nvidia0"}),
        ({"dev/nvidiactl": ""}, {}, {}),
        ({"dev/accel0": ""}, {}, {"tpu": "dev/accel0"}),
        ({}, {"TPU_WORKER_ID": "0"}, {"tpu": "TPU_WORKER_ID"}),
        ({"sys/bus/pci/devices/a/vendor": "0x1ae0\n", "sys/bus/pci/devices/a/device": "0x0042\n"}, {}, {}),
        (
            {"sys/bus/pci/devices/b/vendor": "0x1ae0\n", "sys/bus/pci/devices/b/device": "0x0063\n"},
            {},
            {"tpu": "sys/bus/pci/devices/b"},
        ),
    ],
)
def test_what_the_system_shows_is_seen(tmp_path, files, environment, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = doctor.visible_accelerators(tmp_path, environment | {"PATH": str(tmp_path)})
    assert {kind: where.removeprefix(f"{tmp_path}/") for kind, where in found.items()} == expected


def test_nvidia_smi_tells_of_a_gpu(tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert doctor.visible_accelerators(tmp_path, {"PATH": str(tmp_path)}) == {"gpu": str(tmp_path / "nvidia-smi")}


GPU, TPU = {"gpu": "/dev/nvidia0"}, {"tpu": "/dev/accel0"}


@pytest.mark.parametrize(
    ("visible", "installed", "remedy"),
    [
        (GPU, [], r"jax\[cuda12\] is missing: uv sync --extra cuda12, or pip install 'jax\[cuda12\]'"),
        (TPU, [], r"jax\[tpu\] is missing: uv sync --extra tpu, or pip install 'jax\[tpu\]'"),
        (GPU, ["jax-cuda12-plugin"], "jax-cuda12-plugin is installed, but jax runs on the CPU: nvidia-smi must work"),
        (GPU, ["jax-cuda13-plugin"], "jax-cuda13-plugin is installed"),
        (TPU, ["libtpu"], "libtpu is installed, but jax runs on the CPU: another process may hold it"),
    ],
)
def test_an_accelerator_that_lies_idle_is_told_with_the_remedy(visible, installed, remedy):
    with pytest.raises(UserError, match=remedy) as error:
        doctor.check_backend("cpu", visible, installed, asked="")
    assert "\n" not in str(error.value) and next(iter(visible.values())) in str(error.value)
    assert doctor.check_backend("cpu", visible, installed, asked="cpu").startswith("; JAX_PLATFORMS=cpu leaves /dev/")
    assert doctor.check_backend(*visible, visible, installed, asked="") == ""


def test_nothing_is_said_where_there_is_nothing_but_a_cpu():
    assert doctor.check_backend("cpu", {}, [], asked="") == ""


def test_a_plugin_of_another_version_is_refused(monkeypatch):
    installed = {"jax": "0.10.2", "jaxlib": "0.10.2", "jax-cuda12-plugin": "0.10.1"}
    monkeypatch.setattr(doctor, "_installed", lambda names: installed)
    with pytest.raises(UserError, match=r"jax-cuda12-plugin 0.10.1 does not fit jaxlib 0.10.2: pip install -U 'jax\[cuda12\]'"):
        doctor.versions()
    monkeypatch.setitem(installed, "jax-cuda12-plugin", "0.10.2")
    assert "jax-cuda12-plugin 0.10.2" in doctor.versions()
