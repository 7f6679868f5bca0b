"""A bucket of S3 on loopback, moto's, that looks to a test as one of fake_bucket does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import pytest
from fake_bucket import NAME, Stored

ACCOUNT, REGION = "123456789012", "us-east-1"


class Objects(MutableMapping):
    """What is in the bucket, by name."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._keys = backend.buckets[NAME].keys

    def __getitem__(self, name: str) -> Stored:
        return Stored(self._keys[name].value, 0)

    def __setitem__(self, name: str, stored: Stored) -> None:
        self._backend.put_object(NAME, name, stored.data)

    def __delitem__(self, name: str) -> None:
        del self._keys[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._keys))

    def __len__(self) -> int:
        return len(self._keys)


class Bucket:
    """What is in the bucket, and every write to it in order."""

    def __init__(self, backend: Any, url: str) -> None:
        self._objects = Objects(backend)
        self.writes: list[tuple[str, Stored]] = []
        self.environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": REGION,
        }

    @property
    def objects(self) -> Objects:
        return self._objects

    @objects.setter
    def objects(self, objects: dict[str, Stored]) -> None:
        self._objects.clear()
        self._objects.update(objects)

    def write(self, name: str, data: bytes) -> None:
        self._objects[name] = Stored(data, 0)


@contextmanager
def serve() -> Iterator[Bucket]:
    """An empty bucket called NAME, for as long as the context lasts."""
    from moto.s3.models import S3Backend, s3_backends
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    backend = s3_backends[ACCOUNT]["aws"]
    backend.create_bucket(NAME, REGION)
    bucket = Bucket(backend, f"http://{host}:{port}")
    put_object = S3Backend.put_object

    def noted(self: Any, bucket_name: str, key_name: str, value: bytes, *args: Any, **options: Any) -> Any:
        bucket.writes.append((key_name, Stored(bytes(value), 0)))
        return put_object(self, bucket_name, key_name, value, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Backend, "put_object", noted)
        try:
            yield bucket
        finally:
            server.stop()
            backend.reset()
