"""What the command takes besides a config's fields; apart from it: tyro cannot read a class of the module that runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Options:
    """What to plan for."""

    topology: str = "v5e:8x8"
    """Chips: v5e:8x8, v5p:2x2x2, v6e:4x4, h100:8, cpu:8."""
    model: str | None = None
    """Where init_from is neither a folder nor a published name: a folder with the model's config.json."""
    stage: tuple[str, ...] = ()
    """Only these stages."""
    program: tuple[str, ...] = ()
    """Only these programs: gather, prefill, decode, score, update, fit."""
    analytic: tyro.conf.FlagCreatePairsOff[bool] = False
    """Work it out without compiling."""
    sweep: tyro.conf.FlagCreatePairsOff[bool] = False
    """Rank meshes, each with its best number of microbatches, and compile the best two."""
    price: float | None = None
    """US dollars a chip-hour; by default about what was asked on demand in 2025: see planning/topology.py."""
    curve: Literal["v5e", "v5p", "v6e", "h100"] | None = None
    """Instead of a config: models of three sizes on 1 to 4,096 of these chips."""
    html: Path | None = None
    """A page to write what is printed to, as well."""
    cache: Path = Path("runs/.plans")
    """Where compiled plans are kept."""
