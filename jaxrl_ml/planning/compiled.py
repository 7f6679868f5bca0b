"""Compiles a stage's programs for a topology, ahead of time and without it, and reads off what they take.

In: `Planned`s. Out: an `Estimate` of each, from XLA's own buffer assignment and the optimised program (`hlo.py`). A program
that was compiled before is not compiled again: its text and its memory are kept by a hash of the lowered program, the topology,
the versions of jax and the compiler, and the flags that it takes from the environment.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import re
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxrl_ml.planning.hlo import Module
from jaxrl_ml.planning.stages import Planned
from jaxrl_ml.planning.topology import Topology
from jaxrl_ml.planning.work import Estimate, Memory
from jaxrl_ml.types import require

_COMPILERS = {"h100": "jax-cuda13-pjrt", "cpu": "jaxlib"}  # else libtpu
_LARGEST = 5
_TRITONLESS = {"xla_gpu_enable_triton_gemm": False}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def versions(topology: Topology) -> str:
    """The versions that a compiled plan depends on."""
    compiler = _COMPILERS.get(topology.chip.name, "libtpu")
    return ", ".join(f"{name} {metadata.version(name)}" for name in dict.fromkeys(("jax", "jaxlib", compiler)))


def compile_program(program: Planned, worked_out: Estimate, topology: Topology, cache: Path) -> Estimate:
    """What the program takes when compiled. worked_out: what it is expected to, for one that the compiler refuses.

    Raises UserError where the compiler fails for another reason than memory.
    """
    lowered = program.lower()
    flags = (os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
    key = "\n".join((lowered.as_text(), topology.name, versions(topology), *flags))
    path = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not path.with_suffix(".json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _compile(lowered, path, topology.chip.name, f"{program.name} cannot be compiled for {topology.name}")
    kept = json.loads(path.with_suffix(".json").read_text())
    if kept["error"] is not None:
        found = _refused(kept["error"], program, worked_out, topology, kept["compile_s"])
    else:
        module = Module(gzip.decompress(path.with_suffix(".hlo.gz").read_bytes()).decode(), program.trips)
        largest = tuple(module.largest(_LARGEST))
        found = Estimate(program.name, module.work(), Memory(**kept["memory"]), program.runs, kept["compile_s"], largest)
    return dataclasses.replace(found, memory=found.memory._replace(beside=program.beside), note=kept.get("note", ""))


def _compile(lowered: Any, path: Path, chip: str, complaint: str) -> None:
    """Compiles, and keeps the program in `path`.hlo.gz, its memory or the lack of it in `path`.json.

    Without a GPU to try them on, XLA finds no tiles for some products of Triton's: such a program is compiled without any.
    """
    started, memory, error, note = time.perf_counter(), None, None, ""
    try:
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as raised:
            if chip != "h100" or "RESOURCE_EXHAUSTED" in str(raised):
                raise
            compiled, note = lowered.compile(_TRITONLESS), "no products by Triton, which the compiler fails on without a GPU"
    except jax.errors.JaxRuntimeError as raised:
        error = str(raised)
        require("RESOURCE_EXHAUSTED" in error, f"{complaint}: {next(iter(error.strip().splitlines()), 'no message')[:300]}")
    took = time.perf_counter() - started
    if error is None:
        m = compiled.memory_analysis()
        made = m.output_size_in_bytes - m.alias_size_in_bytes
        peak = m.argument_size_in_bytes + made + m.temp_size_in_bytes
        if chip not in _COMPILERS:  # TPU's temporaries are counted whether they live at once or not; its check is of the peak
            peak = m.peak_memory_in_bytes
        temporaries = peak - m.argument_size_in_bytes - made
        memory = Memory(m.argument_size_in_bytes, m.output_size_in_bytes, temporaries, peak)._asdict()
        path.with_suffix(".hlo.gz").write_bytes(gzip.compress(compiled.as_text().encode()))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"memory": memory, "compile_s": took, "error": error, "note": note}) + "\n")
    temporary.replace(path.with_suffix(".json"))


def _refused(text: str, program: Planned, worked_out: Estimate, topology: Topology, took: float) -> Estimate:
    """Reads the compiler's account of why a program does not fit."""
    used = re.search(r"Used ([\d.]+)([KMGT]) of", text) or re.search(r"\(?([\d.]+)([KMGT])i?B?\)? exceeds", text)
    require(used is not None, f"{program.name} is out of memory on {topology.name}: {text.strip().splitlines()[0][:300]}")
    arguments, size = worked_out.memory.arguments, float(used.group(1)) * _UNITS[used.group(2)]
    peak = size + arguments if "for HLO temporaries" in text else size
    memory = worked_out.memory._replace(temporaries=peak - arguments, peak=peak)
    return dataclasses.replace(worked_out, memory=memory, compile_s=took, largest=_allocations(text), refused=True)


def _allocations(text: str) -> tuple[tuple[float, str, str], ...]:
    """The largest buffers that an out-of-memory message lists."""
    found = {}
    for part in re.split(r"\n\s*\d+\. Size: ", text)[1:]:
        size = re.match(r"([\d.]+)([KMGT]?)", part)
        shape, operator = re.search(r"Shape: (\S+?)[{\s]", part), re.search(r'op_name="([^"]*)"', part)
        row = (
            float(size.group(1)) * _UNITS.get(size.group(2), 1),
            shape.group(1) if shape else "?",
            operator.group(1) if operator else "?",
        )
        found.setdefault(row[1], row)
    return tuple(sorted(found.values(), reverse=True)[:_LARGEST])
