"""Reads and writes the weights of Hugging Face folders: safetensors ↔ our parameter tree, through one table of names.

Reading puts weights straight onto the mesh: each device asks for its own slices of the files. Writing holds one parameter on
the host at a time. `hf_config.py` reads config.json; `save_params` writes it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxrl_ml import storage
from jaxrl_ml.config import ModelConfig, RopeScaling
from jaxrl_ml.models import tensor_file
from jaxrl_ml.models.hf_config import ARCHITECTURES
from jaxrl_ml.models.hf_config import read_config as read_config  # one name for all of a folder
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import Params, UserError, require


class Weight(NamedTuple):
    """How Hugging Face stores a parameter: its name ({}: the layer), and which of our axes each of its axes joins."""

    name: str
    axes: tuple[tuple[int, ...], ...]


_VECTOR = ((0,),)
_LINEAR = ((1,), (0,))  # ours [inputs, outputs], theirs [outputs, inputs]
_TO_HEADS = ((1, 2), (0,))  # ours [D, heads, H]
_BIAS = ((0, 1),)

WEIGHTS: dict[str, Weight] = {
    "embed": Weight("model.embed_tokens.weight", ((0,), (1,))),
    "layers/attention_norm/scale": Weight("model.layers.{}.input_layernorm.weight", _VECTOR),
    "layers/attention/q": Weight("model.layers.{}.self_attn.q_proj.weight", _TO_HEADS),
    "layers/attention/k": Weight("model.layers.{}.self_attn.k_proj.weight", _TO_HEADS),
    "layers/attention/v": Weight("model.layers.{}.self_attn.v_proj.weight", _TO_HEADS),
    "layers/attention/q_bias": Weight("model.layers.{}.self_attn.q_proj.bias", _BIAS),
    "layers/attention/k_bias": Weight("model.layers.{}.self_attn.k_proj.bias", _BIAS),
    "layers/attention/v_bias": Weight("model.layers.{}.self_attn.v_proj.bias", _BIAS),
    "layers/attention/q_norm/scale": Weight("model.layers.{}.self_attn.q_norm.weight", _VECTOR),
    "layers/attention/k_norm/scale": Weight("model.layers.{}.self_attn.k_norm.weight", _VECTOR),
    "layers/attention/o": Weight("model.layers.{}.self_attn.o_proj.weight", ((2,), (0, 1))),
    "layers/mlp_norm/scale": Weight("model.layers.{}.post_attention_layernorm.weight", _VECTOR),
    "layers/mlp/gate": Weight("model.layers.{}.mlp.gate_proj.weight", _LINEAR),
    "layers/mlp/up": Weight("model.layers.{}.mlp.up_proj.weight", _LINEAR),
    "layers/mlp/down": Weight("model.layers.{}.mlp.down_proj.weight", _LINEAR),
    "final_norm/scale": Weight("model.norm.weight", _VECTOR),
    "lm_head": Weight("lm_head.weight", ((0,), (1,))),
}


class _Checkpoint:
    """Open safetensors files, as one mapping from tensor names."""

    def __init__(self, files: Sequence[Path], stack: ExitStack):
        self.file_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for path in files:
            try:
                self._open[path] = stack.enter_context(safe_open(path, framework="numpy"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path} is truncated or not a safetensors file ({error}); fetch it again") from error
            for name in self._open[path].keys():  # noqa: SIM118 - not a mapping
                if name in self.file_of:
                    raise UserError(f"tensor {name} is in {self.file_of[name].name} and in {path.name}; keep one")
                self.file_of[name] = path

    def slice_of(self, name: str) -> Any:
        return self._open[self.file_of[name]].get_slice(name)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(self.slice_of(name)[index]).astype(np.float32)


def _choose_files(folder: Path, expected: Collection[str]) -> list[Path]:
    """The safetensors files that hold the weights of a folder: model.safetensors, or the shards that its index names.

    Where both are there, the set that holds all `expected` tensors is chosen. Raises UserError where both or neither do.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not index.is_file():
        return _require_files(folder, [single.name])
    if not single.is_file():
        return _require_files(folder, _indexed_names(index))
    complete: dict[str, list[Path]] = {}
    faults = []
    for path in (single, index):
        try:
            files = [single] if path == single else _require_files(folder, _indexed_names(index))
            with ExitStack() as stack:
                names = _Checkpoint(files, stack).file_of
            missing = next((name for name in expected if name not in names), None)
            require(missing is None, f"tensor {missing} is missing from {', '.join(file.name for file in files[:3])}")
            complete[path.name] = files
        except UserError as error:
            faults.append(str(error))
    if not complete:
        raise UserError(f"neither {single} nor the shards of {index.name} hold the model: {'; '.join(faults)}")
    if len(complete) == 2 and complete[single.name] != complete[index.name]:
        raise UserError(f"{folder} holds its weights in {single.name} and in the shards of {index.name}; remove one of them")
    return next(iter(complete.values()))


def _indexed_names(index: Path) -> list[str]:
    """The names of the shards in an index, which lie beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{index} is not a safetensors index with a weight_map; fetch it again") from error
    require(not outside, f"{index} names {outside[:1]}, which is not a file beside it; fetch it again")
    return names


def _require_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The paths of files in a folder, all of which are there."""
    absent = [name for name in names if not (folder / name).is_file()]
    if absent and any(folder.glob("*.bin")):
        raise UserError(
            f"{folder} holds PyTorch .bin pickles, which can run code when they are read: convert them with transformers, "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)"
        )
    require(not absent, f"{folder} lacks {', '.join(absent[:1])}; fetch it again")
    return [folder / name for name in names]


def load_params(folder: str | Path, model: Transformer, shardings: Params) -> Params:
    """Reads the weights of a Hugging Face folder as float32, each device's slices straight from the files.

    shardings: a tree like the parameters. Host memory: one shard of one parameter at a time.
    Raises UserError for a missing, extra, misshapen or unreadable tensor, naming it and its file, and for a folder with two
    sets of weights, or with an adapter.
    """
    folder = Path(folder)
    require(
        not (folder / "adapter_config.json").is_file(),
        f"{folder} holds a PEFT adapter beside the weights, which transformers would add to them; merge it into them with "
        "PEFT's merge_and_unload, or move adapter_config.json away",
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with ExitStack() as stack:
        checkpoint = _Checkpoint(_choose_files(folder, [name for name, *_ in _tensors(shapes)]), stack)
        _check_tensors(folder, checkpoint, shapes, model.config)

        def load(path, leaf, sharding):
            return jax.make_array_from_callback(
                leaf.shape, sharding, lambda i: _read_leaf(checkpoint, _key(path), leaf.shape, i)
            )

        return jax.tree_util.tree_map_with_path(load, shapes, shardings)


def _key(path: tuple[Any, ...]) -> str:
    return "/".join(part.key for part in path)


def _tensors(shapes: Params) -> Iterator[tuple[str, str, int | None, tuple[int, ...]]]:
    """(HF name, our key, layer or None, HF shape) of every tensor, in the order of the layers."""
    leaves = {_key(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    assert leaves.keys() <= WEIGHTS.keys(), leaves.keys() - WEIGHTS.keys()
    stacked = [key for key in leaves if key.startswith("layers/")]
    num_layers = leaves[stacked[0]][0]
    single = [(key, None) for key in leaves if key not in stacked]
    for key, layer in single + [(key, layer) for layer in range(num_layers) for key in stacked]:
        shape = leaves[key] if layer is None else leaves[key][1:]
        name, axes = WEIGHTS[key]
        yield name.format(layer), key, layer, tuple(math.prod(shape[a] for a in group) for group in axes)


def _check_tensors(folder: Path, checkpoint: _Checkpoint, shapes: Params, config: ModelConfig) -> None:
    """Every expected tensor is there once, in its shape and a float type, and no other."""
    expected = {name: shape for name, _, _, shape in _tensors(shapes)}
    head, embed = WEIGHTS["lm_head"].name, WEIGHTS["embed"].name
    for name in expected:
        if name not in checkpoint.file_of:
            hint = "; or set tie_word_embeddings in its config.json" if name == head else ""
            raise UserError(f"tensor {name} is missing from {folder}: the files do not fit its config.json{hint}")
    tied_head = config.tie_embeddings and head in checkpoint.file_of
    if tied_head:
        expected[head] = expected[embed]
    for name, file in checkpoint.file_of.items():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if name not in expected:
            raise UserError(f"tensor {name} in {file} has no place in the model that its config.json describes")
        view = checkpoint.slice_of(name)
        if tuple(view.get_shape()) != expected[name]:
            raise UserError(
                f"tensor {name} in {file} has shape {view.get_shape()}; config.json asks for {list(expected[name])}"
            )
        if view.get_dtype() not in ("F32", "F16", "BF16"):
            raise UserError(f"tensor {name} in {file} has dtype {view.get_dtype()}; those that are read: F32, F16, BF16")
    if tied_head:
        rows = max(1, 2**24 // config.embed_dim)
        for start in range(0, config.vocab_size, rows):
            index = (slice(start, min(start + rows, config.vocab_size)),)
            if not np.array_equal(checkpoint.read(head, index), checkpoint.read(embed, index)):
                raise UserError(
                    f"tensor {head} in {checkpoint.file_of[head]} differs from {embed}; set tie_word_embeddings=false"
                )


def _read_leaf(checkpoint: _Checkpoint, key: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of our parameter, read from the tensor(s) that hold it."""
    name, axes = WEIGHTS[key]
    bounds = [part.indices(size) for part, size in zip(index, shape, strict=True)]
    if not key.startswith("layers/"):
        return _read_part(checkpoint, name, axes, shape, bounds)
    out = np.empty([stop - start for start, stop, _ in bounds], np.float32)
    for row, layer in enumerate(range(*bounds[0])):
        out[row] = _read_part(checkpoint, name.format(layer), axes, shape[1:], bounds[1:])
    return out


def _read_part(checkpoint, name, axes, shape, bounds) -> np.ndarray:
    """One tensor's part: a joined axis is cut along the first of ours, and the others of the group are read whole."""
    order = [a for group in axes for a in group]
    cut = tuple(slice(*(bound * math.prod(shape[a] for a in group[1:]) for bound in bounds[group[0]][:2])) for group in axes)
    firsts = {group[0] for group in axes}
    read = checkpoint.read(name, cut).reshape([bounds[a][1] - bounds[a][0] if a in firsts else shape[a] for a in order])
    ours = read.transpose(np.argsort(order))
    return ours[tuple(slice(None) if a in firsts else slice(*bounds[a]) for a in range(len(shape)))]


def save_params(
    folder: str | Path,
    params: Params,
    config: ModelConfig,
    dtype: Literal["float32", "bfloat16"],
    tokenizer: Tokenizer,
    max_shard_bytes: float = 5e9,
) -> None:
    """Writes a folder that `transformers.AutoModelForCausalLM` reads: config, safetensors, tokenizer and chat template.

    params: a tree of arrays, or of functions that give them: each is called once, and what it gave is let go of before the
    next. The folder appears under its name when it is complete.
    Raises UserError where it exists and is not empty, and for a shape that transformers refuses.
    """
    if config.embed_dim % config.num_heads:
        raise UserError(
            f"embed_dim={config.embed_dim} is not a multiple of num_heads={config.num_heads}: transformers refuses it"
        )
    with new_folder(Path(folder)) as temporary:
        tokenizer.save(temporary)
        _write_config(temporary / "config.json", config, dtype, tokenizer)
        stored = np.dtype(np.float32 if dtype == "float32" else ml_dtypes.bfloat16)
        shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
        _write_tensors(params, _begin_files(temporary, shapes, stored, max_shard_bytes), stored)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to, which takes the name `folder` when all is written.

    Raises UserError where that exists and is not empty.
    """
    remote = storage.is_remote(folder)
    require(not remote, f"{storage.at(folder)}: an export is written to local disk; give a local folder, and copy it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: give another folder, or remove it")
    temporary = folder.with_name(folder.name + ".tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    yield temporary
    if folder.exists():
        folder.rmdir()
    temporary.replace(folder)


class _Place(NamedTuple):
    """Where the tensor of a parameter's layer (None: of all of it) goes."""

    layer: int | None
    file: Path
    start: int  # in bytes


def _begin_files(folder: Path, shapes: Params, dtype: np.dtype, max_shard_bytes: float) -> dict[str, list[_Place]]:
    """Makes the files and their index, all but the tensors; returns the places of each parameter's."""
    files: list[list[tuple[str, str, int | None, tuple[int, ...]]]] = [[]]
    size = total = 0
    for tensor in _tensors(shapes):
        num_bytes = math.prod(tensor[-1]) * dtype.itemsize
        if files[-1] and size + num_bytes > max_shard_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size, total = size + num_bytes, total + num_bytes
    places: dict[str, list[_Place]] = {}
    weight_map = {}
    for i, tensors in enumerate(files):
        file = "model.safetensors" if len(files) == 1 else f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        starts = tensor_file.begin(folder / file, {name: shape for name, _, _, shape in tensors}, dtype)
        for name, key, layer, _ in tensors:
            places.setdefault(key, []).append(_Place(layer, folder / file, starts[name]))
        weight_map |= dict.fromkeys(starts, file)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return places


def _write_tensors(params: Params, places: dict[str, list[_Place]], dtype: np.dtype) -> None:
    """Parameter by parameter, since its layers are stored together: each layer's tensor goes to its place."""
    with ExitStack() as stack:
        paths = {place.file for of_one in places.values() for place in of_one}
        files = {path: stack.enter_context(path.open("r+b")) for path in paths}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            array, key = leaf() if callable(leaf) else leaf, _key(path)
            for layer, file, start in places[key]:
                files[file].seek(start)
                files[file].write(fetch(array, WEIGHTS[key].axes, layer, dtype).view(np.uint8))
            del array  # before the next is read


def fetch(leaf: jax.Array, axes: tuple[tuple[int, ...], ...], layer: int | None, dtype: np.dtype) -> np.ndarray:
    """A parameter (of one layer) on the host as Hugging Face stores it."""
    ours = np.asarray(jax.device_get(leaf if layer is None else leaf[layer])).astype(dtype, copy=False)
    joined = [math.prod(ours.shape[a] for a in group) for group in axes]
    return np.ascontiguousarray(ours.transpose([a for group in axes for a in group]).reshape(joined))


def _write_config(path: Path, config: ModelConfig, dtype: str, tokenizer: Tokenizer) -> None:
    """config.json with the keys of transformers 4, which 5 reads too."""
    architecture = {family: name for name, family in ARCHITECTURES.items()}[config.family]
    scaling = config.rope_scaling
    keys = RopeScaling.__dataclass_fields__
    raw = {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else {"rope_type": "llama3", **{key: getattr(scaling, key) for key in keys}},
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.stop_ids) if len(tokenizer.stop_ids) > 1 else tokenizer.stop_ids[0],
        "pad_token_id": tokenizer.pad_id,
    }
    path.write_text(json.dumps(raw, indent=2) + "\n")
