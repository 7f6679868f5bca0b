"""The command line: config files and overrides in, a `Config` out; run folders; errors of one line. Imports nothing heavy.

`load(path, overrides)` reads a config file and applies `--optimizer.learning-rate 3e-6`-style overrides strictly. A file that
compares experiments binds `arms`, a dict of configs by name, and `--arm NAME` chooses one.
"""

from __future__ import annotations

import _thread
import dataclasses
import functools
import gc
import hashlib
import io
import json
import runpy
import shutil
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

from jaxrl_ml import storage
from jaxrl_ml.config import Config
from jaxrl_ml.types import UserError

_CONFIG_MODULE = "<run_path>"
_DIGESTS = "sources.json"  # SHA-256 of the files with the user's code, by name
# Where a resumed run may differ from the run it resumes.
_FREE_TO_CHANGE = ("run_dir", "mesh", "distributed", "logging", "checkpoint", "max_nonfinite_steps")


def load(path: str | Path, overrides: Sequence[str] = (), prog: str | None = None) -> Config:
    """The `config` of a config file, or with `--arm NAME` that of its `arms`, with command-line overrides applied.

    Raises UserError where the file is missing, binds no config or has no such arm; unknown or malformed overrides end the
    process with a usage message, as do `--help` requests.
    """
    import tyro

    path, overrides = Path(path), list(overrides)
    if not path.is_file():
        raise UserError(f"no config file {path}; those that ship with the library are in configs/")
    bound = runpy.run_path(str(path), run_name=_CONFIG_MODULE)
    module = sys.modules[_CONFIG_MODULE] = ModuleType(_CONFIG_MODULE)  # tyro looks up the source of the file's own classes
    module.__dict__.update(bound)
    arms = bound.get("arms", {})
    if "--arm" in overrides:
        place = overrides.index("--arm")
        name = (overrides[place + 1 : place + 2] or [""])[0]
        del overrides[place : place + 2]
        if name not in arms:
            raise UserError(f"--arm {name}: {path} has {'no arms' if not arms else 'only ' + ', '.join(arms)}")
        config = arms[name]
    else:
        config = bound.get("config")
        if config is None and arms:
            raise UserError(f"{path} has several arms: choose one with --arm {'|'.join(arms)}")
    if not isinstance(config, Config):
        raise UserError(f"{path} must bind `config` to a jaxrl_ml.config.Config; it has {type(config).__name__}")
    with _objects_as_they_are():
        return tyro.cli(Config, default=config, args=overrides, prog=prog, config=(tyro.conf.AvoidSubcommands,))


def _objects_as_they_are() -> Any:
    """Keeps tyro from making arguments of a task's examples, and of the constructors of objects that are no dataclasses."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.struct_rule
    def as_it_is(info: Any) -> Any:
        value = info.default
        task = isinstance(value, Sequence) and not isinstance(value, (str, bytes, tuple))
        ours = dataclasses.is_dataclass(value) or type(value).__module__ in ("builtins", "tyro._singleton")
        if ours and not task or isinstance(value, type) or dataclasses.is_dataclass(info.type):
            return None
        return tyro.constructors.StructConstructorSpec(instantiate=lambda: value, fields=())

    return registry


def load_run(run_dir: str | Path) -> Config:
    """The config of a run folder: the copy of its config file, with the overrides the run was started with."""
    folder = storage.local(run_dir)
    if not (folder / "config.py").is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no config.py")
    path = folder / "overrides.json"
    try:
        overrides = [str(override) for override in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); restore it, or write [] to it for a run without overrides"
        ) from error
    return load(folder / "config.py", overrides)


def resolved(config: Any) -> Any:
    """A config as JSON-able data: dataclasses become objects, functions their qualified names."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {f.name: resolved(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **values}
    if isinstance(config, (list, tuple)):
        return [resolved(item) for item in config]
    if isinstance(config, Mapping):
        return {str(key): resolved(value) for key, value in config.items()}
    if config is None or isinstance(config, (str, int, float, bool)):
        return config
    if isinstance(config, Callable) and hasattr(config, "__qualname__"):
        return f"{config.__module__}.{config.__qualname__}"
    return type(config).__qualname__


def first_difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two resolved configs differ: (dotted path, old value, new value)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            found = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            found = first_difference(a, b, f"{path}.{i}")
            if found:
                return found
        return None
    return None if old == new else (path, old, new)


def write_resolved(config: Config, folder: Path) -> None:
    """Writes the resolved config to `folder/config.json`, atomically."""
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(resolved(config), indent=1, ensure_ascii=False) + "\n")
    temporary.replace(folder / "config.json")


def check_folder(config: Config) -> None:
    """Raises UserError where the run folder holds another run."""
    place, run_dir = config.run_dir, storage.local(config.run_dir)
    existing = run_dir / "config.json"
    if existing.is_file() and _has_checkpoints(place):
        try:
            old = json.loads(existing.read_text())
        except ValueError as error:
            raise UserError(f"{existing} cannot be read ({error}); restore it, or use another --run-dir") from error
        new = json.loads(json.dumps(resolved(config)))
        for name in _FREE_TO_CHANGE:
            old.pop(name, None), new.pop(name, None)
        if config.chat_date is None or old.get("chat_date") is None:  # None takes the day of the run, old runs had none
            old.pop("chat_date", None), new.pop("chat_date", None)
        found = first_difference(old, new)
        if found:
            name, was, now = found
            raise UserError(f"{place} holds a run with {name}={was!r}, not {now!r}; use that value, or another --run-dir")
    elif (run_dir / "model.json").is_file() and not existing.is_file():
        raise UserError(f"{place} holds imported weights, not a run; start from them with init_from and another --run-dir")


def _has_checkpoints(run_dir: str) -> bool:
    checkpoints = storage.for_orbax(run_dir) / "checkpoints"
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def write_folder(config: Config, source: Path, overrides: Sequence[str]) -> str | None:
    """Makes the run folder, and writes there what the run is: its config, the config file, and digests of the user's code.

    Returns a note for the user where a run goes on with other code than it had. That is no error, unlike a field that differs:
    code cannot be compared by what it does, and to correct a typing error must not cost the run.
    """
    run_dir = storage.local(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_resolved(config, run_dir)
    digests = {name: _digest(path) for name, path in source_files(config, source).items()}
    note = _changed_code(config, source, digests) if _has_checkpoints(config.run_dir) else None
    if source.resolve() != (run_dir / "config.py").resolve():
        shutil.copyfile(source, run_dir / "config.py.tmp")
        (run_dir / "config.py.tmp").replace(run_dir / "config.py")
    for name, value in (("overrides.json", list(overrides)), (_DIGESTS, digests)):
        (run_dir / f"{name}.tmp").write_text(json.dumps(value) + "\n")
        (run_dir / f"{name}.tmp").replace(run_dir / name)
    return note


def source_files(config: Config, source: Path) -> dict[str, Path]:
    """The files with the user's code of a config: the config file, as `config.py`, and modules by their dotted names.

    Modules are those of the functions and objects in the config, and what they and the config file import, other than this
    library and installed packages.
    """
    files, seen = {"config.py": source}, set()
    waiting = [_CONFIG_MODULE, *_modules_of(config)]
    while waiting:
        name = waiting.pop()
        file = getattr(sys.modules.get(name), "__file__", None)
        of_another_config = name == _CONFIG_MODULE and file != str(source)
        if name in seen or of_another_config or file is None or not _is_users(Path(file).resolve()):
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])  # the package
        if Path(file).resolve() != source.resolve():
            files[name] = Path(file)
        for value in list(vars(sys.modules[name]).values()):
            waiting += [value.__name__] if isinstance(value, ModuleType) else _modules_of(value, deep=False)
    return dict(sorted(files.items()))


def _modules_of(value: Any, deep: bool = True) -> Iterator[str]:
    """The names of the modules that an object of a config takes its code from; `deep`: its fields and items, too."""
    if isinstance(value, functools.partial):
        yield from _modules_of((value.args, value.keywords), deep)
        value = value.func
    value = getattr(value, "__func__", value)  # of a method
    yield type(value).__module__
    if isinstance(value, (FunctionType, type)) and isinstance(value.__module__, str):
        yield value.__module__
    if deep and dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _modules_of(getattr(value, field.name))
    elif deep and isinstance(value, (Mapping, tuple)):  # no list: a task may be one, of many thousand examples
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _modules_of(item)


def _is_users(path: Path) -> bool:
    """Whether a file is Python code, and neither of this library, nor of Python, nor of an installed package."""
    if path.suffix != ".py" or not path.is_file():
        return False
    library = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not installed and not any(path.is_relative_to(folder.resolve()) for folder in library)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _changed_code(config: Config, source: Path, digests: Mapping[str, str]) -> str | None:
    """What to say where the user's code is not that of the run so far; keeps a copy of the config file that the run had."""
    run_dir, place = storage.local(config.run_dir), storage.at(config.run_dir)
    copy = run_dir / "config.py"
    try:
        before = dict(json.loads((run_dir / _DIGESTS).read_text()))
    except (OSError, ValueError, TypeError):  # a run from before there were digests
        before = {"config.py": _digest(copy)} if copy.is_file() else {}
    changed = [name for name in digests if name in before and before[name] != digests[name]]
    if not changed:
        return None
    shown = []
    for name in changed:
        if name != "config.py":
            shown.append(f"{sys.modules[name].__file__}")
        elif copy.is_file() and _digest(copy) == before[name]:
            kept = f"config-{before[name][:8]}.py"
            shutil.copyfile(copy, run_dir / kept)
            shown.append(f"{source} (before: {place / kept})")
        else:
            shown.append(str(source))
    return (
        f"note: changed since this run was last started: {', '.join(shown)}. Rewards, tasks and prompt formats are code, which "
        "is not compared field by field: the run goes on with the code as it is now"
    )


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command; a UserError becomes one line on standard error and exit status 2, Ctrl-C exit status 130.

    A terminal that is not UTF-8 does not end it: what that cannot show is spelled out.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    own_interrupt = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as in the background
    if own_interrupt:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        status = main()
    except UserError as error:
        text = " ".join(storage.with_addresses(str(error)).splitlines())
        text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)  # it may quote a hostile file
        print(f"error: {text}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    finally:
        if own_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    raise SystemExit(status or 0)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; a moment later where the garbage collector calls back, as jax has it do: it would be lost."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in callbacks:
            threading.Timer(0.01, _thread.interrupt_main).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
