"""Compaction: a group that is being decoded moves onto a smaller grid once enough of its rows have stopped.

In: the state of `sampler.decode` on a grid of prompts × cells, a cell for a row. Out: the same rows, those that go on, on the
next grid. What has stopped is put by, in its row's place; a cell without a row is stopped from the start.

A grid has half the cells of the one before and at most about twice the prompts of the first: a prompt with more live rows than
a line of the grid has cells takes several lines, and its cache is copied for each. So a move does not wait until every prompt
has lost half of its rows, and the caches never take more room than at the start. Rows stay in their shard.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

FEWEST_CELLS = 8  # of a shard: fewer rows decode no faster


class Grid(NamedTuple):
    """What one shard decodes on: lines, each with a prompt's cache, of cells."""

    lines: int
    cells: int


class Stopped(NamedTuple):
    """The rows of all cells that ever were: what they have written so far, by row, and the row of each cell."""

    row: jax.Array  # int32 [cells]; the row within the shard, their number for a cell without one
    written: Any  # the state's `written`, [B, …]


def grids(Q: int, G: int) -> list[Grid]:
    """The grids that Q prompts × G samples of a shard go through."""
    found, cells = [Grid(Q, G)], Q * G // 2
    while cells >= FEWEST_CELLS:
        width = max(1, cells // (2 * Q))
        found.append(Grid(cells // width, width))
        cells //= 2
    return found


def live_rows(stop_state: jax.Array, stopped: int, shards: int, grid: Grid) -> jax.Array:
    """How many rows of each line go on, int32 [shards, lines]."""
    return (stop_state != stopped).reshape(shards, *grid).sum(-1, dtype=jnp.int32)


def fits(live: Any, grid: Grid) -> Any:
    """Whether live rows, int [shards, lines], have room on `grid`; of numpy or jax arrays."""
    return (-(-live // grid.cells)).sum(-1).max() <= grid.lines


def put_by(written: Any, stopped: Stopped | None, shards: int) -> Any:
    """What all rows have written, in their places: that of the cells over what was put by before."""
    if stopped is None:
        return written

    def place(before: jax.Array, cells: jax.Array) -> jax.Array:
        rows, cells, row = (_by_shard(x, shards) for x in (before, cells, stopped.row))
        return jax.vmap(lambda b, c, r: b.at[r].set(c, mode="drop"))(rows, cells, row).reshape(before.shape)

    return jax.tree.map(place, stopped.written, written)


def choose(live: jax.Array, new: Grid) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the cells of a new grid come from, given which cells of a shard's grid are live, bool [lines, cells].

    Returns each line's old line int32 [new.lines], each cell's old cell int32 [new.lines · new.cells] (flat), and whether it
    holds a live row, bool, flat too. Every live row gets one cell where `fits`.
    """
    lines, cells = live.shape
    count = live.sum(1, dtype=jnp.int32)
    need = -(-count // new.cells)
    ends = jnp.cumsum(need)
    line = jnp.arange(new.lines)
    source = jnp.minimum(jnp.searchsorted(ends, line, side="right"), lines - 1)
    rank = (line - (ends - need)[source])[:, None] * new.cells + jnp.arange(new.cells)[None]
    filled = rank < count[source][:, None]
    order = jnp.argsort(~live, axis=1, stable=True)  # live cells first
    cell = source[:, None] * cells + jnp.take_along_axis(order[source], jnp.minimum(rank, cells - 1), axis=1)
    return source, cell.reshape(-1), filled.reshape(-1)


def take(tree: Any, index: jax.Array, shards: int) -> Any:
    """Of each leaf [shards · n, …] what index int32 [shards, m] picks within its shard, [shards · m, …]."""

    def picked(leaf: jax.Array) -> jax.Array:
        found = jax.vmap(lambda x, i: x[i])(_by_shard(leaf, shards), index)
        return found.reshape(-1, *leaf.shape[1:])

    return jax.tree.map(picked, tree)


def _by_shard(x: jax.Array, shards: int) -> jax.Array:
    return x.reshape(shards, x.shape[0] // shards, *x.shape[1:])
