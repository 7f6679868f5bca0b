"""Laws of adapters: they start as nothing, they alone are trained, by the chain rule, and merging is what training computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from conftest import TINY, Policy, assert_trees_close, bytes_alive
from safetensors.numpy import load_file

from jaxrl_ml import convert, pretrained
from jaxrl_ml.checkpoint import Checkpoints
from jaxrl_ml.config import CheckpointConfig, Config, GRPOStage, LoRAConfig, MeshConfig, OptimizerConfig, SFTStage
from jaxrl_ml.models import hf, lora
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.optimizer import make_optimizer
from jaxrl_ml.sharding import Layout, make_mesh
from jaxrl_ml.train import main
from jaxrl_ml.types import UserError

LORA = LoRAConfig(rank=3, alpha=6.0)
SCALE = 2.0
MATRICES = [(module, name, inputs) for module, names in lora.MATRICES.items() for name, inputs in names.items()]


def trained_adapter(policy: Policy):
    """The policy's parameters under an adapter whose B is not zero any more, the same on any mesh."""
    params = policy.programs.adapt(policy.params, LORA, policy.put(jax.random.key(1)))
    rng = np.random.default_rng(0)

    def noise(leaf):
        return jax.device_put(rng.normal(scale=0.1, size=leaf.shape).astype(np.float32), leaf.sharding)

    return lora.with_trained(params, jax.tree.map(noise, lora.trained(params)))


def flat(weight, inputs: int):
    """A matrix of ours, of all layers, as [L, inputs, outputs]."""
    weight = np.asarray(weight)
    return weight.reshape(weight.shape[0], int(np.prod(weight.shape[1 : 1 + inputs])), -1)


def test_a_new_adapter_changes_no_bit_of_the_sampling_weights(eight):
    params = eight.programs.adapt(eight.params, LORA, eight.put(jax.random.key(1)))
    assert_trees_close(eight.programs.gather(params), eight.weights, rtol=0, atol=0)
    adapter = lora.trained(params)
    for module, name, inputs in MATRICES:
        a, b = np.asarray(adapter[module][name]["a"]), np.asarray(adapter[module][name]["b"])
        bound = np.prod(a.shape[1 : 1 + inputs]) ** -0.5
        assert not b.any()
        assert 0.8 * bound < np.abs(a).max() <= bound
        assert abs(a.mean()) < bound / 4
        assert not np.array_equal(a[0], a[1])
    assert len({float(pair["a"].ravel()[0]) for pairs in adapter.values() for pair in pairs.values()}) == len(MATRICES)


def test_sizes_and_places(eight):
    params = trained_adapter(eight)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    moments = eight.programs.moments(optimizer, params)
    layers = params["layers"]
    for module, name, inputs in MATRICES:
        weight, pair = layers.base[module][name], layers.adapter[module][name]
        cut = 1 + inputs
        assert pair["a"].shape == (*weight.shape[:cut], LORA.rank)
        assert pair["b"].shape == (weight.shape[0], LORA.rank, *weight.shape[cut:])
        assert tuple(pair["a"].sharding.spec) == (*weight.sharding.spec[:cut], None)
        assert tuple(pair["b"].sharding.spec) == (None, None, *weight.sharding.spec[cut:])
    assert "fsdp" in str(layers.adapter["attention"]["q"]["a"].sharding.spec)
    assert "tensor" in str(layers.adapter["mlp"]["up"]["b"].sharding.spec)
    adam = optax.tree_utils.tree_get(moments, "mu")
    same = jax.tree.map(lambda m, p: (m.shape, m.sharding) == (p.shape, p.sharding), adam, layers.adapter)
    assert all(jax.tree.leaves(same))
    size = sum(leaf.size for leaf in jax.tree.leaves(layers.adapter))
    assert sum(leaf.size for leaf in jax.tree.leaves(moments)) <= 2 * size + 8  # and counters
    shapes = eight.programs.state_shapes(optimizer, LORA)
    like = jax.tree.map(lambda x, s: (x.shape, x.dtype, x.sharding) == (s.shape, s.dtype, s.sharding), params, shapes.params)
    assert all(jax.tree.leaves(like))


def test_merging_adds_scale_a_b_to_the_matrices_and_to_nothing_else(one):
    params = trained_adapter(one)
    plain = one.programs.merge(params)
    assert one.programs.merge(plain) is plain
    base, adapter = params["layers"].base, params["layers"].adapter
    for module, name, inputs in MATRICES:
        pair = adapter[module][name]
        product = flat(pair["a"], inputs) @ flat(pair["b"], 1)
        expected = flat(base[module][name], inputs) + SCALE * product
        np.testing.assert_allclose(flat(plain["layers"][module][name], inputs), expected, rtol=0, atol=1e-6)
        assert np.abs(product).max() > 1e-2
    touched = {f"layers/{module}/{name}" for module, name, _ in MATRICES}
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
        if (key := "/".join(part.key for part in path)) not in touched:
            before = one.params
            for part in path:
                before = before[part.key]
            np.testing.assert_array_equal(leaf, before, err_msg=key)
    assert_trees_close(one.programs.gather(params), one.programs.gather(plain), rtol=0, atol=0)


@pytest.fixture(scope="module")
def updates(one, eight, batch):
    """(policy, gradients, the state after, metrics, program) of one update of the same adapter, on one and on eight devices."""
    programs = [policy.programs.update(policy.stage(lora=LORA), policy.sgd) for policy in (one, eight)]
    return [
        (policy, *policy.update(batch, trained_adapter(policy), program), program)
        for policy, program in zip((one, eight), programs, strict=True)
    ]


def test_only_the_adapter_is_trained(updates):
    for policy, grads, state, *_ in updates:
        assert_trees_close(lora.frozen(state.params), policy.params, rtol=0, atol=0)
        for leaf in jax.tree.leaves(lora.trained(grads)):
            assert np.abs(leaf).max() > 1e-4


def test_a_further_update_compiles_nothing_and_leaves_the_base_where_it_is(updates, batch):
    for policy, _, state, _, program in updates:
        state = policy.copy(state)
        places = [shard.data.unsafe_buffer_pointer() for shard in state.params["layers"].base["mlp"]["up"].addressable_shards]
        rest = policy.put(np.int32(0)), policy.put(np.float32(1)), None
        after, _ = program(state, policy.put_rows(batch), *rest)
        assert program._cache_size() == 1
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
        assert places == [
            shard.data.unsafe_buffer_pointer() for shard in after.params["layers"].base["mlp"]["up"].addressable_shards
        ]


def test_the_gradient_is_the_chain_rule_of_the_full_one(updates, one, batch):
    _, grads, _, metrics, _ = updates[0]
    params = trained_adapter(one)
    full, _, expected = one.update(batch, one.programs.merge(params))
    assert metrics["policy/loss"] == pytest.approx(expected["policy/loss"], rel=1e-5)
    for module, name, inputs in MATRICES:
        dW = flat(full["layers"][module][name], inputs)
        pair, found = params["layers"].adapter[module][name], grads["layers"].adapter[module][name]
        a, b = flat(pair["a"], inputs), flat(pair["b"], 1)
        for got, want in (
            (flat(found["a"], inputs), SCALE * dW @ b.swapaxes(1, 2)),
            (flat(found["b"], 1), SCALE * a.swapaxes(1, 2) @ dW),
        ):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max(), err_msg=f"{module}/{name}")


def test_eight_devices_give_the_result_of_one(updates):
    (_, one, _, metrics_one, _), (_, eight, _, metrics_eight, _) = updates
    for name, value in metrics_one.items():
        assert metrics_eight[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for a, b in zip(jax.tree.leaves(lora.trained(one)), jax.tree.leaves(lora.trained(eight)), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * np.abs(a).max())


def test_peft_stores_what_hf_stores_on_the_same_matrices():
    """The two tables agree on which axes are inputs, and no linear layer of a block is left out."""
    linear = {key for key, weight in hf.WEIGHTS.items() if weight.name.endswith("proj.weight")}
    assert linear == {f"layers/{module}/{name}" for module, name, _ in MATRICES}
    for module, name, inputs in MATRICES:
        assert hf.WEIGHTS[f"layers/{module}/{name}"].axes[1] == tuple(range(inputs))


# Whole runs.

CONFIG = """
import numpy as np
from jaxrl_ml.config import *
from jaxrl_ml.tasks.countdown import Countdown, compact

def reward(texts, examples):
    return np.array([len(t) % 3 for t in texts], np.float32)

def demonstrate(example, rng):
    return f"<answer>{example.fields['solution'].replace(' ', '')}</answer>"

task, lora = Countdown(demonstrate=demonstrate), LoRAConfig(rank=2, alpha=8.0)
fit = dict(num_steps=2, batch_size=4, sequence_length=64)
sampling = SamplingConfig(max_prompt_tokens=17, max_completion_tokens=8)
learn = dict(prompts_per_step=4, group_size=2, num_minibatches=2, lora=lora, sampling=sampling)
config = Config(
    run_dir="unset",
    tokenizer=(*"0123456789+-*/()=: ", "<answer>", "</answer>"),
    model=ModelConfig(family="qwen2", num_layers=2, embed_dim=16, mlp_dim=24, num_heads=2, num_kv_heads=1, head_dim=8),
    prompt_format=compact,
    stages=(
        SFTStage(task, name="cold_start", lora=lora, **fit),
        SFTStage(task, name="left_out", num_steps=0),
        GRPOStage(task, reward, name="explore", num_steps=2, loss=LossConfig(kl="k3", reference="run"), **learn),
        GRPOStage(task, reward, name="exploit", num_steps=1, loss=LossConfig(kl="k3"), keep_optimizer=True, **learn),
        SFTStage(task, name="full", **fit | {"num_steps": 1}),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    checkpoint=CheckpointConfig(every_steps=1, keep=10),
    logging=LoggingConfig(console=False, tensorboard=False, samples_every_steps=1),
)
"""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of three stages that was never stopped: LoRA, the same adapter through RL, then all weights; and its device."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "tiny.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: first)
        assert main([str(folder / "tiny.py"), "--run-dir", str(folder / "run")]) == 0
        yield folder / "run"


def records(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "rate/"))} for line in lines]


def params_of(run: Path, step: int, merge: bool = True):
    config = pretrained.read_model_config(run)
    model = Transformer(config)
    layout = Layout(make_mesh(MeshConfig(), jax.devices()[:1]))
    shardings = layout.tree(model.axes(), jax.eval_shape(model.init, jax.random.key(0)))
    return (pretrained.load_params if merge else pretrained.load_adapted)(run, model, shardings, step)


def test_stages_with_one_config_train_one_adapter_and_another_merges_it(straight):
    first, second, third, *later = (params_of(straight, step, merge=False) for step in (1, 2, 3, 4, 5))
    for params in (second, third, *later):
        assert_trees_close(lora.frozen(params), lora.frozen(first), rtol=0, atol=0)
    assert [folder.name for folder in (straight / "base").iterdir()] == ["cold_start"]
    start = max(
        np.abs(np.asarray(x) - np.asarray(y)).max() for x, y in zip(*map(jax.tree.leaves, (second, third)), strict=True)
    )
    assert 0 < start < 0.05  # a few updates of 0.01 on, not drawn anew
    full = params_of(straight, 6, merge=False)
    assert not lora.is_adapted(full)
    merged = params_of(straight, 5)
    moved = [np.abs(np.asarray(x) - np.asarray(y)).max() for x, y in zip(*map(jax.tree.leaves, (full, merged)), strict=True)]
    assert min(moved) > 0
    assert max(moved) < 0.011  # one update of 0.01 from the merged weights
    held = [(straight / f"checkpoints/{step}/{name}").exists() for step in (5, 6) for name in ("adapter", "params")]
    assert held == [True, False, False, True]


def test_the_adapter_is_sampled_from_as_it_is_scored(straight):
    gaps = [line["policy/sampler_gap"] for line in records(straight) if "policy/sampler_gap" in line]
    assert len(gaps) == 3
    assert max(gaps) < 1e-4


def test_the_kl_reference_is_the_frozen_base_or_the_merged_start_of_the_stage(straight):
    kl = {line["step"]: line["policy/kl"] for line in records(straight) if "policy/kl" in line}
    assert sorted(kl) == [3, 4, 5]
    # First from the start of the run, below the adapter; then from the stage's, where of two minibatches the first is at it.
    assert min(kl[3], kl[4]) > 10 * kl[5] > 0
    assert [folder.name for folder in (straight / "reference").iterdir()] == ["exploit"]


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 4, 5], ids=["in-sft", "into-rl", "into-full"])
def test_a_resumed_run_is_the_straight_one(straight, step):
    run = straight.parent / f"resumed_{step}"
    shutil.copytree(straight, run)
    for later in range(step + 1, 7):
        shutil.rmtree(run / f"checkpoints/{later}")
    assert main([str(straight.parent / "tiny.py"), "--run-dir", str(run)]) == 0
    assert records(run) == records(straight)
    assert_trees_close(params_of(run, 6), params_of(straight, 6), rtol=0, atol=0)


def test_a_lost_base_is_named(straight):
    run = straight.parent / "baseless"
    shutil.copytree(straight, run)
    shutil.rmtree(run / "base")
    with pytest.raises(UserError, match=r"frozen base of the adapter .*base/cold_start is missing; restore it") as caught:
        params_of(run, 5)
    assert "\n" not in str(caught.value)


def test_peft_export_of_a_run(straight, tmp_path, capsys):
    adapter, base, whole = tmp_path / "adapter", tmp_path / "base", tmp_path / "whole"
    convert.main(["to-adapter", str(straight), str(adapter), "--step", "5", "--base", str(base)])
    convert.main(["to-hf", str(straight), str(whole), "--step", "5"])
    assert capsys.readouterr().out.count("\n") == 2
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 8)
    assert config["base_model_name_or_path"] == str(base)
    tensors, before, after = (
        load_file(folder / name)
        for folder, name in ((adapter, "adapter_model.safetensors"), (base, "model.safetensors"), (whole, "model.safetensors"))
    )
    assert tensors["base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"].shape == (2, 16)
    assert tensors["base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"].shape == (8, 2)
    assert len(tensors) == 2 * 7 * 2
    for name, weight in before.items():
        a, b = (tensors.pop(f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight", None) for x in "AB")
        if a is None:
            np.testing.assert_array_equal(after[name], weight)
        else:
            assert name.split(".")[-2] in config["target_modules"]
            assert np.abs(b @ a).max() > 1e-4
            np.testing.assert_allclose(after[name], weight + 8 / 2 * b @ a, rtol=0, atol=1e-6)
    assert not tensors


def test_an_export_merges_a_matrix_at_a_time(straight, tmp_path, monkeypatch):
    """Beside the adapter, one parameter is there at a time; what is written is what `load_params` gives."""
    alive = bytes_alive(monkeypatch)
    convert.main(["to-hf", str(straight), str(tmp_path / "out"), "--step", "5"])
    monkeypatch.undo()
    params = params_of(straight, 5, merge=False)
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(lora.frozen(params))]
    adapter = sum(leaf.nbytes for leaf in jax.tree.leaves(lora.trained(params)))
    assert max(alive) < max(sizes) + adapter + 1000 < sum(sizes)
    hf.save_params(
        tmp_path / "whole",
        params_of(straight, 5),
        pretrained.read_model_config(straight),
        "float32",
        pretrained.read_tokenizer(straight),
    )
    assert_trees_close(*(load_file(tmp_path / f"{name}/model.safetensors") for name in ("out", "whole")), rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore")  # peft's own
def test_peft_computes_the_same_logits(straight, tmp_path):
    reason = "is not installed: pip install torch peft, and parity with PEFT is tested"
    torch, peft = (pytest.importorskip(name, reason=f"{name} {reason}") for name in ("torch", "peft"))
    from transformers import AutoModelForCausalLM

    adapter, base, whole = (str(tmp_path / name) for name in ("adapter", "base", "whole"))
    convert.main(["to-adapter", str(straight), adapter, "--step", "5", "--base", base])
    convert.main(["to-hf", str(straight), whole, "--step", "5"])
    plain, merged = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (base, whole))
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        before = plain(tokens).logits
        theirs = peft.PeftModel.from_pretrained(plain, adapter).eval()(tokens).logits
        ours = merged(tokens).logits
    assert (theirs - before).abs().max() > 1e-2
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_what_cannot_be_exported_is_told(straight, tmp_path):
    for arguments, text in (
        (["--step", "6"], "step 6 of .* holds no adapter"),
        (["--step", "5"], "have them written with --base DIR"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            convert.main(["to-adapter", str(straight), str(tmp_path / "out"), *arguments])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_configs_that_make_no_sense_are_refused():
    for values, text in (({"rank": 0}, "lora.rank=0 must be at least 1"), ({"alpha": 0.0}, "lora.alpha=0.0 must be positive")):
        with pytest.raises(UserError, match=text):
            LoRAConfig(**values)
    stages = (SFTStage(None, lora=LORA), GRPOStage(None, None, keep_optimizer=True))
    with pytest.raises(UserError, match=r"grpo.keep_optimizer=True needs lora=LoRAConfig\(rank=3.*, that of sft, not None"):
        Config(stages, run_dir="x", model=TINY, tokenizer="x")


def test_which_stage_starts_an_adapter():
    other = LoRAConfig(rank=4)
    plan = (("a", None, 1), ("b", LORA, 2), ("c", other, 0), ("d", LORA, 3), ("e", other, 1), ("f", None, 1), ("g", other, 1))
    stages = tuple(SFTStage(None, name=name, lora=adapter, num_steps=steps) for name, adapter, steps in plan)
    config = Config(stages, run_dir="x", model=TINY, tokenizer="x")
    live = [stage for stage in stages if stage.num_steps]
    assert [config.adapter_start(stage).name for stage in live] == ["a", "b", "b", "e", "f", "g"]
    assert "".join(config.stage_of(step).name for step in range(1, config.num_steps + 1)) == "abbdddefg"


def test_a_checkpoint_says_what_it_holds(tmp_path, one):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save_params(0, one.params)
        assert checkpoints.adapter_of(0) is None
