"""`python -m jaxrl_ml.convert`: a Hugging Face folder into a run folder, and a run's checkpoint into a Hugging Face folder.

    from-hf DIR RUN                                          weights, tokenizer and chat template to start runs from
    to-hf RUN DIR [--step N] [--dtype float32|bfloat16]      a folder that transformers reads, an adapter merged
    to-adapter RUN DIR [--step N] [--base DIR]               the adapter alone, as PEFT reads it

All go through host memory: from-hf holds one float32 copy of the model, the others a parameter at a time, all layers of it. A
training run that is given a Hugging Face folder as `init_from` reads it straight onto its mesh instead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxrl_ml import storage
from jaxrl_ml.cli import run_command
from jaxrl_ml.types import Params, UserError

if TYPE_CHECKING:
    from jaxrl_ml.models.transformer import Transformer


def main(argv: Sequence[str] | None = None) -> None:
    commands = {"from-hf": from_hf, "to-hf": to_hf, "to-adapter": to_adapter}
    tyro.extras.subcommand_cli_from_dict(commands, args=argv, prog="python -m jaxrl_ml.convert", description=__doc__)


def from_hf(folder: Annotated[Path, tyro.conf.Positional], run: Annotated[Path, tyro.conf.Positional]) -> None:
    """Import a Hugging Face folder.

    Args:
        folder: The Hugging Face folder: config.json, safetensors, tokenizer.
        run: The run folder to make; it must not exist, or be empty.
    """
    folder, run = storage.at(folder), storage.at(run)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run} exists and is not empty: give another folder, or remove it")
    from jaxrl_ml import pretrained
    from jaxrl_ml.checkpoint import Checkpoints
    from jaxrl_ml.config import CheckpointConfig

    if pretrained.is_run(folder):
        raise UserError(f"{folder} is a run folder already; from-hf takes a Hugging Face folder")
    model, shardings = _on_one_device(folder)
    params = pretrained.load_params(folder, model, shardings)
    tokenizer = pretrained.read_tokenizer(folder)
    with Checkpoints(run, CheckpointConfig()) as checkpoints:
        checkpoints.save_params(0, params)
    tokenizer.save(storage.local(run) / "tokenizer")
    pretrained.write_model_config(storage.local(run), model.config)  # last: it is what makes the folder a model
    storage.push(run)
    print(f"wrote {_describe(model)} from {folder} to run folder {run}, step 0")


def to_hf(
    run: Annotated[Path, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    step: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Export a checkpoint of a run.

    Args:
        run: The run folder.
        folder: The Hugging Face folder to make; it must not exist, or be empty.
        step: Which checkpoint; by default the best by the run's checkpoint.best_metric, or else the latest.
        dtype: How the weights are stored.
    """
    from jaxrl_ml import pretrained
    from jaxrl_ml.models import hf

    run = storage.at(run)
    with pretrained.open_checkpoints(run) as checkpoints:
        model, shardings = _on_one_device(run)
        params = checkpoints.leaves(step, pretrained.shapes_of(model, shardings))
        hf.save_params(folder, params, model.config, dtype, pretrained.read_tokenizer(run))
    of = "its best or latest checkpoint" if step is None else f"step {step}"
    print(f"wrote {_describe(model)} from {run}, {of}, to Hugging Face folder {folder} in {dtype}")


def to_adapter(
    run: Annotated[Path, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    step: int | None = None,
    base: Path | None = None,
) -> None:
    """Export the adapter of a checkpoint of a run, as PEFT reads it.

    Args:
        run: The run folder.
        folder: The folder to make for the adapter; it must not exist, or be empty.
        step: Which checkpoint; by default the best by the run's checkpoint.best_metric, or else the latest.
        base: The Hugging Face folder to make of the frozen weights below the adapter; by default none is made, and the adapter
            names the Hugging Face folder that the run started from.
    """
    from jaxrl_ml import pretrained
    from jaxrl_ml.cli import load_run
    from jaxrl_ml.models import hf, peft

    run = storage.at(run)
    trained = load_run(run)
    with pretrained.open_checkpoints(run) as checkpoints:
        step = checkpoints.best() if step is None else step
        model, shardings = _on_one_device(run)
        shapes = pretrained.shapes_of(model, shardings)
        found = checkpoints.restore_adapter(step, shapes)
        if found is None:
            raise UserError(
                f"step {step} of {run} holds no adapter: its stage trained all weights; use to-hf, or another --step"
            )
        start, hub = trained.adapter_start(trained.stage_of(step)), trained.init_from
        if base is not None:
            frozen = checkpoints.leaves(step, shapes, merge=False)
            hf.save_params(base, frozen, model.config, "float32", pretrained.read_tokenizer(run))
        elif hub is None or pretrained.is_run(hub) or start is not trained.stage_of(1):
            raise UserError(
                f"the adapter of {run}, step {step}, lies on weights of this run; have them written with --base DIR"
            )
    adapter, config, _ = found
    peft.save_adapter(folder, adapter, config, str(base or hub))
    print(f"wrote the adapter of {run}, step {step}, to PEFT folder {folder}, for {base or hub}")


def _on_one_device(path: Path) -> tuple[Transformer, Params]:
    """The model of a folder, and shardings that put it on the host."""
    import jax

    from jaxrl_ml import pretrained
    from jaxrl_ml.config import MeshConfig
    from jaxrl_ml.models.transformer import Transformer
    from jaxrl_ml.sharding import Layout, make_mesh

    model = Transformer(pretrained.read_model_config(path))
    layout = Layout(make_mesh(MeshConfig(), jax.devices("cpu")[:1]))
    return model, layout.tree(model.axes(), jax.eval_shape(model.init, jax.random.key(0)))


def _describe(model: Transformer) -> str:
    import jax

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return f"a {model.config.family} model of {count / 1e6:,.2f}M parameters"


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator may be another's, which trains
    run_command(main)
