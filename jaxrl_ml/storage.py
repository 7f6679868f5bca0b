"""Folders on local disk and in buckets: `gs://bucket/run` and `s3://bucket/run` in, paths out.

A run works in a local folder. Where its `run_dir` is in a bucket, orbax writes what it keeps (checkpoints, references, bases)
straight there, and all else, which is small, appended to or read by libraries that know local files alone, lies in a copy on
local disk: fetched when it is first asked for, pushed back before each checkpoint and at the end. So the bucket never holds a
checkpoint whose metrics it lacks, and a run that goes on, on this machine or another, cuts back to its last checkpoint as ever.
A Hugging Face folder in a bucket is copied as a whole.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import re
import shutil
import tempfile
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrl_ml import orbax_s3
from jaxrl_ml.types import UserError

if TYPE_CHECKING:
    from etils import epath

    AnyPath = Path | epath.Path

_URL = re.compile(r"(gs|s3):/+(?=[^/])")  # pathlib makes one slash of two
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_copies: dict[str, _Copy] = {}
KEPT_BY_ORBAX = ("checkpoints", "reference", "base")


def is_remote(place: str | Path) -> bool:
    """Whether a place is in a bucket."""
    return _URL.match(str(place)) is not None


def at(place: str | Path) -> AnyPath:
    """The path of a local place or of one in a bucket. Raises UserError where the package for such buckets is not installed."""
    match = _URL.match(str(place))
    if match is None:
        return Path(place)
    scheme = match[1]
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        url = _URL.sub(rf"{scheme}://", str(place))
        raise UserError(f"{url} needs the package {_PACKAGES[scheme]}: pip install 'jaxrl_ml[{_EXTRAS[scheme]}]'")
    from etils import epath

    return epath.Path(f"{scheme}://{str(place)[match.end() :]}")


def for_orbax(folder: str | Path) -> AnyPath:
    """The absolute path of a folder that orbax keeps. Raises UserError where it cannot."""
    path = at(folder)
    if str(path).startswith("s3://"):
        orbax_s3.enable()
    return path if is_remote(path) else path.absolute()


def local(place: str | Path) -> Path:
    """The folder itself, or of one in a bucket this process's copy of all that orbax does not keep; empty where there is none.

    Raises UserError where the bucket cannot be read.
    """
    return _copy(str(at(place))).folder if is_remote(place) else Path(place)


def push(place: str | Path) -> None:
    """Brings a bucket's folder up to date with `local`: files that were changed, made or removed since. Does nothing otherwise.

    Raises UserError where the bucket cannot be written to.
    """
    if is_remote(place):
        _copy(str(at(place))).push()


def make_room(file: Path) -> None:
    """Makes the folder of a file on local disk. Raises UserError where the file cannot be: before hours of work, not after."""
    if is_remote(file):
        raise UserError(f"{at(file)}: this is written to local disk; give a local path, and copy it")
    if file.is_dir():
        raise UserError(f"{file} is a folder; give the path of a file to write")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error}); give another path") from error


def names_below(folder: AnyPath) -> list[str]:
    """All files in a folder and those below it, relative to it."""
    if not is_remote(folder):
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files, root = _file_system(str(folder))
    files.invalidate_cache()  # others write there too
    return sorted(name.removeprefix(f"{root}/") for name in files.find(root))


def md5s(folder: AnyPath) -> dict[str, str]:
    """The MD5s, in hexadecimal, that a bucket itself keeps of the files below a folder, by name; empty where it keeps others.

    Google's has one of every file that was written in one go. Amazon's ETag is one, unless the bucket is encrypted with a key
    of its own: whether it is shows in the smallest file.
    """
    files, root = _file_system(str(folder))
    files.invalidate_cache()
    sizes, found = {}, {}
    for path, about in files.find(root, detail=True).items():
        told = b64decode(about["md5Hash"]).hex() if "md5Hash" in about else about.get("ETag", "").strip('"')
        if re.fullmatch("[0-9a-f]{32}", told):
            sizes[path], found[path] = about["size"], told
    if found:
        smallest = min(found, key=sizes.__getitem__)
        if hashlib.md5(files.cat_file(smallest), usedforsecurity=False).hexdigest() != found[smallest]:
            return {}
    return {path.removeprefix(f"{root}/"): told for path, told in found.items()}


def with_addresses(text: str) -> str:
    """A message as the user knows the places in it: buckets for their copies on local disk."""
    for copy in _copies.values():
        text = text.replace(str(copy.folder), copy.url)
    return text


def _copy(url: str) -> _Copy:
    if url not in _copies:
        _copies[url] = _Copy(url)
    return _copies[url]


class _Copy:
    """The local copy of a folder in a bucket; it goes with the process."""

    def __init__(self, url: str) -> None:
        self.url = url
        parent = Path(tempfile.mkdtemp(prefix="jaxrl_ml-"))
        atexit.register(shutil.rmtree, parent, ignore_errors=True)
        self.folder = parent / url.rsplit("/", 1)[1]
        self.folder.mkdir()
        self._files, self._root = _file_system(url)
        try:
            names = [name for name in names_below(at(url)) if name.split("/")[0] not in KEPT_BY_ORBAX]
            for name in names:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            self._files.get(*self._here_and_there(names)[::-1])
        except Exception as error:  # each bucket's package raises its own
            raise UserError(f"{url} cannot be read ({_reason(error)}); check the address and your credentials") from error
        self._there = self._seen()

    def push(self) -> None:
        now = self._seen()
        changed = [name for name, stamp in now.items() if self._there.get(name) != stamp]
        removed = [name for name in self._there if name not in now]
        try:
            if changed:
                self._files.put(*self._here_and_there(changed))
            if removed:
                self._files.rm(self._here_and_there(removed)[1])
        except Exception as error:  # as above
            raise UserError(f"{self.url} cannot be written to ({_reason(error)}); check your credentials") from error
        self._there = now

    def _here_and_there(self, names: list[str]) -> tuple[list[str], list[str]]:
        """The paths of files in the copy, and in the bucket; many of them are moved at a time."""
        return [str(self.folder / name) for name in names], [f"{self._root}/{name}" for name in names]

    def _seen(self) -> dict[str, tuple[int, int]]:
        stats = {name: (self.folder / name).stat() for name in names_below(self.folder)}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(url)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
