"""Orbax on s3://, which it does not know (0.12): all that it does for gs://, with tensorstore's S3 driver in place of Google's.

A checkpoint there looks like one in gs://: every process writes its own shards, and a step counts when `commit_success.txt` is
there. tensorstore warns that S3 does not order two writers of one key: here each key has one.

Address, region and credentials are those of s3fs: a profile, the environment, or the machine's role, and `AWS_ENDPOINT_URL` for
other stores that speak S3.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from jaxrl_ml.types import require

# S3 takes at most 5 GB at once, and an array's part goes into one file: with these, and orbax's 400 MiB a file, none is larger.
LARGEST_PART = 2**30

_AMAZON = re.compile(r"https://s3(\.[\w-]+)?\.amazonaws\.com(\.cn)?")  # where tensorstore finds the bucket's region by itself


@cache
def enable() -> None:
    """Has orbax take s3:// as it takes gs://, in this process. Raises UserError for an orbax that is made otherwise."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    require(
        hasattr(gcs_utils, "is_gcs_path") and hasattr(tensorstore_utils, "build_kvstore_tspec"),
        f"checkpoints in s3:// need orbax-checkpoint 0.12, and {ocp.__version__} is installed; take that, or a gs:// run_dir",
    )
    gcs_utils.is_gcs_path = _also_s3(gcs_utils.is_gcs_path)
    tensorstore_utils.build_kvstore_tspec = _also_on_s3(tensorstore_utils.build_kvstore_tspec)


def _also_s3(is_gcs_path: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return wraps(is_gcs_path)(lambda path: str(path).startswith("s3://") or is_gcs_path(path))


def _also_on_s3(build: Callable[..., Any]) -> Callable[..., Any]:
    """Of a function that gives a store's specification for a folder, one that gives it for folders in s3://, too."""

    @wraps(build)
    def build_any(directory: str, *args: Any, **options: Any) -> Any:
        if not directory.startswith("s3:"):
            return build(directory, *args, **options)
        return _with_s3(build(directory.replace("s3:", "gs:", 1), *args, **options), _driver())

    return build_any


def _with_s3(spec: Any, driver: dict[str, Any]) -> Any:
    """A specification with S3's driver wherever it has Google's."""
    if isinstance(spec, list):
        return [_with_s3(part, driver) for part in spec]
    if not isinstance(spec, dict):
        return spec
    if spec.get("driver") in ("gcs", "gcs_grpc"):
        return {**spec, **driver}
    return {name: _with_s3(part, driver) for name, part in spec.items()}


@cache
def _driver() -> dict[str, Any]:
    """What tensorstore is told of S3: where s3fs goes for it, unless that is Amazon, and whose credentials."""
    import fsspec

    client = fsspec.filesystem("s3").s3.meta
    driver: dict[str, Any] = {"driver": "s3"}
    if not _AMAZON.fullmatch(client.endpoint_url):
        driver |= {"endpoint": client.endpoint_url, "aws_region": client.region_name}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else each of the places where they could be is looked at, and the empty ones told
        driver |= {"aws_credentials": {"type": "environment"}}
    return driver
