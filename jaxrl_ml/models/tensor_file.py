"""A safetensors file that is written a tensor at a time, in any order: the library's own writer has all of them in memory.

In: names and shapes. Out: the file's header, and the place of each tensor behind it, as the library lays them out, byte for
byte. Source: the safetensors documentation, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_KINDS = {"float32": "F32", "bfloat16": "BF16"}


def begin(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> dict[str, int]:
    """Makes the file, all but its tensors; returns where each of them begins, in bytes. `dtype` is float32 or bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, shape in sorted(shapes.items()):
        starts[name], end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _KINDS[dtype.name], "shape": list(shape), "data_offsets": [starts[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + start for name, start in starts.items()}
