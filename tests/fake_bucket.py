"""A bucket of Google Cloud Storage on loopback: as much of its JSON API as tensorstore and gcsfs use, generations included.

    with serve() as bucket:                 # the objects are in bucket.objects, the address in bucket.url
        subprocess.run(…, env={**os.environ, **bucket.environment})

Source: the reference of the Cloud Storage JSON API, v1. Conditions on generations are kept, without which OCDBT's manifests are
not safe; checksums, versions and permissions are not there.
"""

from __future__ import annotations

import email
import hashlib
import json
import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

NAME = "bucket"


class Stored(NamedTuple):
    """An object's content, and the number of the write that it is from."""

    data: bytes
    generation: int


class Bucket:
    """What is in the bucket, and every write to it in order."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.generation = 1_000_000
        self.writes: list[tuple[str, Stored]] = []
        self.lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """What points both clients here."""
        return {
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "STORAGE_EMULATOR_HOST": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks by gRPC of which kind the bucket is
        }

    def write(self, name: str, data: bytes) -> None:
        self.generation += 1
        self.objects[name] = Stored(data, self.generation)
        self.writes.append((name, self.objects[name]))

    def about(self, name: str) -> dict[str, str]:
        """The resource of an object."""
        data, generation = self.objects[name]
        digest = b64encode(hashlib.md5(data).digest()).decode()
        time = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object",
            "id": f"{NAME}/{name}/{generation}",
            "name": name,
            "bucket": NAME,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(data)),
            "md5Hash": digest,
            "timeCreated": time,
            "updated": time,
            "storageClass": "STANDARD",
        }


@contextmanager
def serve() -> Iterator[Bucket]:
    """An empty bucket called NAME, for as long as the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.bucket = Bucket(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # of a client that was killed
            super().handle()

    def _handle(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.bucket.lock:
            status, given, content = self._answer(method, self.path, headers, body)
        self.send_response(status)
        for name, value in given.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        bucket = self.server.bucket
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        found = re.fullmatch(rf"(?:/upload|/download)?/storage/v1/b/{NAME}/o(?:/(.*))?", parts.path)
        if found is None:
            bare = parts.path == f"/storage/v1/b/{NAME}"
            return _json({"kind": "storage#bucket", "name": NAME, "id": NAME}) if bare else _error(404)
        name = unquote(found[1]) if found[1] else None
        if parts.path.startswith("/upload"):
            return self._upload(method, query, headers, body)
        if name is None:
            return self._list(query)
        failed = _condition(query, bucket.objects.get(name))
        if failed:
            return _error(failed)
        if name not in bucket.objects:
            return _error(404)
        if method == "DELETE":
            del bucket.objects[name]
            return 204, {}, b""
        if query.get("alt") == "media" or parts.path.startswith("/download"):
            return self._media(name, headers)
        return _json(bucket.about(name))

    def _media(self, name: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        data, generation = self.server.bucket.objects[name]
        about = {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))
        if asked is None:
            return 200, about, data
        first = int(asked[1]) if asked[1] else max(0, len(data) - int(asked[2]))
        last = min(int(asked[2]), len(data) - 1) if asked[1] and asked[2] else len(data) - 1
        if first > last:
            return _error(416)
        return 206, {**about, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]

    def _list(self, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        bucket, prefix, delimiter = self.server.bucket, query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        for name in sorted(bucket.objects):
            inside = name.startswith(prefix) and name >= query.get("startOffset", "")
            if not inside or ("endOffset" in query and name >= query["endOffset"]):
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if cut:
                folders.add(f"{prefix}{head}{cut}")
            else:
                items.append(bucket.about(name))
        return _json({"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def _upload(self, method: str, query: dict[str, str], headers: dict[str, str], body: bytes):
        bucket, kind = self.server.bucket, query.get("uploadType")
        name = query.get("name")
        if kind == "multipart":
            message = email.message_from_bytes(b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body)
            about, _ = message.get_payload()
            name = name or json.loads(about.get_payload(decode=True))["name"]
            boundary = message.get_boundary().encode()
            second = body.split(b"--" + boundary)[2]
            body = second.split(b"\r\n\r\n" if b"\r\n\r\n" in second else b"\n\n", 1)[1]
            body = body.removesuffix(b"\n").removesuffix(b"\r")
        elif kind == "resumable" and "upload_id" not in query:
            name = name or json.loads(body)["name"]
            key = str(len(bucket.uploads))
            bucket.uploads[key] = (name, b"")
            location = f"{bucket.url}/upload/storage/v1/b/{NAME}/o?uploadType=resumable&upload_id={key}"
            return 200, {"Location": location}, b""
        elif kind == "resumable":
            name, before = bucket.uploads[query["upload_id"]]
            body = before + body
            if headers.get("content-range", "").endswith("/*"):
                bucket.uploads[query["upload_id"]] = (name, body)
                return 308, {"Range": f"bytes=0-{len(body) - 1}"}, b""
        failed = _condition(query, bucket.objects.get(name))
        if failed:
            return _error(failed)
        bucket.write(name, body)
        return _json(bucket.about(name))


def _condition(query: dict[str, str], there: Stored | None) -> int:
    """The status of a condition that is not met, else 0."""
    generation = 0 if there is None else there.generation
    if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
        return 412
    return 304 if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation else 0


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status: int) -> tuple[int, dict[str, str], bytes]:
    if status == 304:
        return status, {}, b""  # which has no body
    return status, {"Content-Type": "application/json"}, json.dumps({"error": {"code": status, "message": "refused"}}).encode()
