"""Checkpoints of a run, by orbax: parameters, optimiser, and a JSON record of progress (steps, data iterator, seed, config).

In: a `TrainState` and the progress at a step boundary. Out: the same, bit for bit, onto any mesh. A checkpoint appears under
`RUN/checkpoints/STEP` only when it is complete; a save that was killed leaves nothing that restores. It holds a digest of each
file, written before it appears and compared when it is restored: orbax itself reads some flipped bits as other values. That is
the MD5 where a bucket keeps one by itself, so that nothing is read back, else the SHA-256. The same holds for the frozen
weights kept beside them: KL references, and the bases of adapters.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial, reduce
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxrl_ml import orbax_s3, processes, storage
from jaxrl_ml.config import CheckpointConfig, LoRAConfig
from jaxrl_ml.models import lora
from jaxrl_ml.types import Params, TrainState, UserError

CHECKSUMS = "checksums.json"
_COMMITTED = "commit_success.txt"  # what orbax writes last in a bucket, where it cannot rename
_TIMES = "_CHECKPOINT_METADATA"  # of the save, which orbax writes once more as it commits
_MD5_DIGITS = 32
_BASE = "frozen base of the adapter"
_ABSL = logging.getLogger("absl")  # orbax's, and perhaps the user's


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Leaves out what orbax reports of each phase of a save, at warning level and below."""
    return record.levelno >= logging.ERROR or "orbax" not in record.pathname


class Checkpoints:
    """The checkpoints of one run folder; saves run in the background until `wait` or `close`."""

    def __init__(self, run_dir: Path, config: CheckpointConfig, read_only: bool = False) -> None:
        self.folder = storage.for_orbax(run_dir) / "checkpoints"
        self._saving: int | None = None
        self._best_metric = config.best_metric
        self._filter = partial(_is_worth_logging)  # an object of its own, so that closing removes no other's
        _ABSL.addFilter(self._filter)
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=self._options(config, read_only))
        except BaseException:
            _ABSL.removeFilter(self._filter)
            raise

    def _options(self, config: CheckpointConfig, read_only: bool) -> ocp.CheckpointManagerOptions:
        kept: list[Any] = [policies.LatestN(n=config.keep)]
        rank = None
        if config.best_metric is not None:
            rank = itemgetter(config.best_metric)
            kept.append(policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False))
        return ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=rank,  # without it orbax writes no metrics, and a resumed run forgets its best
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),  # called before the commit
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step whose evaluation metric is best; the latest where nothing is ranked."""
        ranked = {}
        if self._best_metric is not None:
            for step in self.steps():
                metrics = self._manager.metrics(step) or {}
                if self._best_metric in metrics:
                    ranked[step] = metrics[self._best_metric]
        return max(ranked, key=ranked.__getitem__) if ranked else max(self.steps(), default=None)

    def save(
        self, step: int, state: TrainState, progress: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Saves a step in the background; the arrays are copied before it returns, so they may be donated.

        Of adapted parameters only the adapter is saved. `progress["adapter"]` tells how to put it back: rank, alpha, and base,
        the folder in the run that keeps the frozen weights (`save_reference`).
        """
        name = "adapter" if lora.is_adapted(state.params) else "params"
        items = {
            name: self._to_save(lora.trained(state.params)),
            "optimizer": self._to_save({"step": state.step, "opt_state": state.opt_state}),
            "progress": ocp.args.JsonSave(dict(progress)),
        }
        ranked = dict(metrics) if metrics and self._best_metric in metrics else None
        self._begin(step)
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=ranked)

    def save_params(self, step: int, params: Params) -> None:
        """Saves parameters alone: a model to start from, not a run to go on with."""
        self._begin(step)
        self._manager.save(step, args=ocp.args.Composite(params=self._to_save(params)))
        self.wait()

    def restore(self, step: int, shapes: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and progress of a step, onto the shardings of `shapes` (ShapeDtypeStructs).

        Raises UserError where the checkpoint is damaged, of another shape, or holds parameters alone.
        """
        optimizer = {"step": shapes.step, "opt_state": shapes.opt_state}
        params = self.restore_params(step, lora.frozen(shapes.params))
        restored = self._restore(step, optimizer=ocp.args.StandardRestore(optimizer), progress=ocp.args.JsonRestore())
        opt = restored["optimizer"]
        return TrainState(opt["step"], params, opt["opt_state"]), restored["progress"]

    def restore_params(self, step: int | None, shapes: Params) -> Params:
        """The parameters of a step (None: the best, or else the latest), onto the shardings of `shapes`, those of plain ones.

        They are adapted where the step holds an adapter.
        """
        step = self._existing(step)
        found = self.restore_adapter(step, shapes)
        if found is None:
            return self._restore(step, params=ocp.args.StandardRestore(shapes))["params"]
        adapter, config, base = found
        return lora.attach(load_reference(base, shapes, _BASE), adapter, config)

    def restore_adapter(self, step: int | None, shapes: Params) -> tuple[Params, LoRAConfig, Path] | None:
        """The adapter of a step, and the folder of the weights it lies on; None where the step holds all parameters."""
        step = self._existing(step)
        about = self.adapter_of(step)
        if about is None:
            return None
        config = LoRAConfig(about["rank"], about["alpha"])
        like = ocp.args.StandardRestore(lora.adapter_like(shapes, config.rank))
        return self._restore(step, adapter=like)["adapter"], config, self.folder.parent / about["base"]

    def leaves(self, step: int | None, shapes: Params, merge: bool = True) -> Params:
        """The plain parameters of a step as functions, each of which reads its own alone, so that they need not all be there.

        merge: whether what an adapter adds is added. All files are verified before it returns.
        """
        step = self._existing(step)
        found = self.restore_adapter(step, shapes)
        if found is None:
            told = partial(self._told, step)
            with told():
                _verify(self.folder / str(step), ["params"])
            return _one_by_one(self.folder / str(step) / "params", shapes, told)
        adapter, config, base = found
        told = partial(_told_of, base, _BASE)
        with told():
            _verify(base)
        leaves = _one_by_one(base, shapes, told)
        if not merge:
            return leaves

        def merged(read: Callable[[], jax.Array], pair: Params) -> Callable[[], jax.Array]:
            return lambda: lora.merge_stacked(read(), pair, config)

        layers = dict(leaves["layers"])
        for module, pairs in adapter.items():
            layers[module] = {**layers[module], **{name: merged(layers[module][name], pair) for name, pair in pairs.items()}}
        return {**leaves, "layers": layers}

    def adapter_of(self, step: int) -> dict[str, Any] | None:
        """What `save` was told of the adapter of a step; None where the step holds all parameters."""
        if not (self.folder / str(step) / "adapter").is_dir():
            return None
        return self._restore(step, progress=ocp.args.JsonRestore())["progress"]["adapter"]

    def _to_save(self, tree: Any) -> ocp.args.StandardSave:
        return ocp.args.StandardSave(tree, save_args=_save_args(self.folder, tree))

    def _begin(self, step: int) -> None:
        self.wait()  # as the manager does itself: `_write_checksums` must know whose files it reads
        self._saving = step

    def _write_checksums(self) -> None:
        _write_checksums(self.folder / str(self._saving))

    def _existing(self, step: int | None) -> int:
        """The step (None: the best, or else the latest). Raises UserError where there is no such checkpoint."""
        step = self.best() if step is None else step
        if step is None:
            raise UserError(f"{self.folder.parent} has no checkpoint yet; wait for the run's first")
        if step not in self.steps():
            raise UserError(f"{self.folder.parent} has no checkpoint {step}; it has {self.steps() or 'none'}")
        return step

    def _restore(self, step: int, **items: Any) -> Any:
        with self._told(step):
            _verify(self.folder / str(step), items)
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextmanager
    def _told(self, step: int) -> Iterator[None]:
        """What goes wrong inside is told as a UserError."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise whatever their layers raise
            others = [s for s in self.steps() if s != step]
            remedy = f"delete that folder to fall back to step {others[-1]}" if others else "start again in another run_dir"
            raise UserError(f"checkpoint {self.folder / str(step)} cannot be restored ({_reason(error)}); {remedy}") from error

    def wait(self) -> None:
        """Returns when every save is on disk. Raises UserError where one could not be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as in _told
            last = max(self.steps(), default=None)
            kept = "no checkpoint is there yet" if last is None else f"step {last} is the last that is complete"
            raise UserError(
                f"the checkpoint of step {self._saving} could not be written to {self.folder} ({_reason(error)}); {kept}: "
                "make room there, then run the same command again"
            ) from error

    def close(self) -> None:
        try:
            self.wait()
        finally:
            _ABSL.removeFilter(self._filter)
            self._manager.close()


def _write_checksums(folder: Path) -> None:
    """Leaves the digests of the files of a folder that is being saved, and has its last name not yet, beside them."""
    if jax.process_index() == 0:
        in_bucket = storage.is_remote(folder)  # where no folder has a first name
        for unfinished in [folder] if in_bucket else folder.parent.glob(f"{folder.name}.orbax-checkpoint-tmp*"):
            kept = storage.md5s(unfinished) if in_bucket else {}
            names = [name for name in storage.names_below(unfinished) if not name.endswith(_TIMES)]
            digests = {name: kept.get(name) or _digest(unfinished / name, "sha256") for name in names}
            (unfinished / CHECKSUMS).write_text(json.dumps(digests, indent=1) + "\n")


def _verify(folder: Path, items: Collection[str] | None = None) -> None:
    """Raises ValueError for a file of these items (None: any) that is not as it was saved; each process reads its share."""
    if not (folder / CHECKSUMS).is_file():  # saved before there were any
        return
    digests = json.loads((folder / CHECKSUMS).read_text())
    kept = storage.md5s(folder) if storage.is_remote(folder) else {}
    names = sorted(name for name in digests if items is None or name.split("/")[0] in items)

    def is_bad(name: str) -> bool:
        saved = digests[name]
        if kept.get(name) == saved:
            return False
        kind = "md5" if len(saved) == _MD5_DIGITS else "sha256"
        return not (folder / name).is_file() or _digest(folder / name, kind) != saved

    names = names[jax.process_index() :: jax.process_count()]
    with ThreadPoolExecutor() as pool:
        bad = next((name for name, wrong in zip(names, pool.map(is_bad, names), strict=True) if wrong), None)
    for name in filter(None, processes.gather(bad)):
        raise ValueError(f"{name} is not as it was saved")


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.new, kind, usedforsecurity=False)).hexdigest()


def _save_args(folder: Path, tree: Any) -> Any:
    """What orbax is told of each array: in S3 no file may be too large."""
    largest = orbax_s3.LARGEST_PART if str(folder).startswith("s3:") else None
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=largest), tree)


def _reason(error: Exception) -> str:
    """The first line of an error, not too long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def save_reference(folder: Path, params: Params) -> None:
    """Keeps a KL reference, or the base of an adapter, beside the checkpoints; it appears only when complete."""
    folder = storage.for_orbax(folder)
    options = ocp.AsyncOptions(post_finalization_callback=partial(_write_checksums, folder))  # called before the commit
    with ocp.StandardCheckpointer(async_options=options) as checkpointer:
        checkpointer.save(folder, params, save_args=_save_args(folder, params), force=True)


def load_reference(folder: Path, shapes: Params, what: str = "KL reference") -> Params:
    """The parameters kept in `folder`. Raises UserError, that calls them `what`, where there are none, or they are damaged."""
    folder = storage.for_orbax(folder)
    with _told_of(folder, what), ocp.StandardCheckpointer() as checkpointer:
        _verify(folder)
        return checkpointer.restore(folder, shapes)


@contextmanager
def _told_of(folder: Path, what: str) -> Iterator[None]:
    """What goes wrong with frozen weights inside is told as a UserError."""
    if not (folder / _COMMITTED if storage.is_remote(folder) else folder).exists():
        raise UserError(f"the {what} {folder} is missing; restore it, or start again in another run_dir")
    try:
        yield
    except Exception as error:  # as in Checkpoints._told
        raise UserError(f"the {what} {folder} is damaged ({_reason(error)}); start again in another run_dir") from error


def _one_by_one(folder: Path, shapes: Params, told: Callable[[], AbstractContextManager[None]]) -> Params:
    """A tree of functions: each reads one of the arrays kept in `folder`, and no other; `told` is around it."""

    def read(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
        with told():
            return _read(folder, reduce(lambda inner, part: {part.key: inner}, reversed(path), shape))

    return jax.tree_util.tree_map_with_path(lambda path, shape: partial(read, path, shape), shapes)


def _read(folder: Path, alone: Params) -> jax.Array:
    """The one array of `alone`, which stands at its place in a tree without the others."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(alone)
    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(alone, restore_args, partial_restore=True))
    return jax.tree.leaves(restored)[0]


def shapes_of(params: Params) -> Params:
    """ShapeDtypeStructs of arrays, shardings included."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
