"""A model to start from: a Hugging Face folder or a folder of one of our runs, read the same way.

A run folder holds `model.json` (its ModelConfig), `tokenizer/` and `checkpoints/STEP/`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxrl_ml import storage
from jaxrl_ml.config import CheckpointConfig, ModelConfig, RopeScaling
from jaxrl_ml.models import hf, lora
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import Params, UserError

if TYPE_CHECKING:
    from jaxrl_ml.checkpoint import Checkpoints


def is_run(path: Path) -> bool:
    return (storage.local(path) / "model.json").is_file()


def _require_model(place: str | Path) -> Path:
    """The folder, or the local copy of one in a bucket."""
    path = storage.local(place)
    if not path.is_dir():
        raise UserError(f"no folder {place}: give a Hugging Face model folder or a run folder")
    if not is_run(path) and not (path / "config.json").is_file():
        raise UserError(f"{place} is neither a Hugging Face model folder (no config.json) nor a run folder (no model.json)")
    return path


def read_model_config(path: str | Path) -> ModelConfig:
    """The model's shape. Raises UserError where the folder is neither kind or the architecture is not supported."""
    path = _require_model(path)
    if not is_run(path):
        return hf.read_config(path)
    try:
        values = json.loads((path / "model.json").read_text())
        scaling = values.pop("rope_scaling")
        return ModelConfig(**values, rope_scaling=None if scaling is None else RopeScaling(**scaling))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path / 'model.json'} cannot be read ({error}); restore it or start again") from error


def write_model_config(run_dir: Path, config: ModelConfig) -> None:
    """Writes `model.json`, atomically."""
    temporary = run_dir / "model.json.tmp"
    temporary.write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n")
    temporary.replace(run_dir / "model.json")


def read_tokenizer(path: str | Path) -> Tokenizer:
    path = _require_model(path)
    return Tokenizer.from_folder(path / "tokenizer" if is_run(path) else path)


def load_params(path: str | Path, model: Transformer, shardings: Any, step: int | None = None) -> Params:
    """The weights, float32, onto `shardings`; of a run: those of checkpoint `step` (None: the best, or else the latest).

    An adapter is merged into the weights that it was trained on.
    """
    return jax.device_put(lora.merged(load_adapted(path, model, shardings, step)), shardings)


def load_adapted(path: str | Path, model: Transformer, shardings: Any, step: int | None = None) -> Params:
    """As `load_params`, but where the checkpoint holds an adapter, the weights under it."""
    folder = _require_model(path)
    if not is_run(folder):
        if step is not None:
            raise UserError(f"step={step}: {path} is a Hugging Face folder and has no steps; leave the step out")
        return hf.load_params(folder, model, shardings)
    with open_checkpoints(path) as checkpoints:
        return checkpoints.restore_params(step, shapes_of(model, shardings))


def open_checkpoints(run: str | Path) -> Checkpoints:
    """The checkpoints of a run folder, to read: as a context. Raises UserError where it is none."""
    from jaxrl_ml.checkpoint import Checkpoints

    if not is_run(run):
        raise UserError(f"{run} is not a run folder: it has no model.json")
    return Checkpoints(run, CheckpointConfig(best_metric=_best_metric(run)), read_only=True)


def best_step(path: str | Path) -> int | None:
    """The step of a run that is taken where none is named: the best, or else the latest; None for a Hugging Face folder."""
    if not is_run(path):
        return None
    with open_checkpoints(path) as checkpoints:
        return checkpoints.best()


def read_run_config(run: str | Path) -> dict[str, Any] | None:
    """The resolved config of a run, from `config.json`; None where there is none. The run's `config.py` is not executed.

    Raises UserError where the file is damaged.
    """
    path = storage.local(run) / "config.json"
    if not is_run(run) or not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(run, error) from error
    if not isinstance(config, dict):
        raise damaged(run, f"it holds {type(config).__name__}, not an object")
    return config


def damaged(run: str | Path, reason: object) -> UserError:
    """The error about a run whose config.json cannot be read."""
    path = storage.local(run) / "config.json"
    return UserError(
        f"{path} cannot be read ({reason}); restore it, or delete it to take the latest checkpoint without the run's settings"
    )


def _best_metric(run: str | Path) -> str | None:
    """The metric by which a run chooses its best checkpoint; None: it takes the latest."""
    config = read_run_config(run)
    try:
        return None if config is None else config["checkpoint"]["best_metric"]
    except (KeyError, TypeError) as error:
        raise damaged(run, error) from error


def shapes_of(model: Transformer, shardings: Any) -> Params:
    """ShapeDtypeStructs of a model's plain parameters."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        jax.eval_shape(model.init, jax.random.key(0)),
        shardings,
    )
