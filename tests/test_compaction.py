"""Laws of compaction: every row that goes on keeps a cell, and moving rows changes nothing that is sampled."""

from __future__ import annotations

import contextlib

import jax
import numpy as np
import pytest
from conftest import Policy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler import assert_same_rows
from test_tags import W, prompts_allowing, some_allowed, trie

from jaxrl_ml import compaction, sampler
from jaxrl_ml.compaction import Grid
from jaxrl_ml.config import MeshConfig

MESHES = [MeshConfig(data=1), MeshConfig(data=2, fsdp=2, tensor=2)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 33))
def test_grids_halve_their_cells_and_never_have_many_more_lines(Q, G):
    found = compaction.grids(Q, G)
    assert found[0] == (Q, G)
    for moves, grid in enumerate(found[1:], start=1):
        most = Q * G >> moves
        assert most - grid.cells < grid.lines * grid.cells <= most >= compaction.FEWEST_CELLS
        assert grid.lines < 4 * Q and grid.cells <= G


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(8, 8), (3, 5), (1, 16), (16, 1)]), st.floats(0, 1))
def test_every_live_row_gets_one_cell_on_a_line_of_its_prompt(seed, shape, share):
    old, new = Grid(*shape), compaction.grids(*shape)[-1]
    live = np.random.default_rng(seed).random(shape) < share
    if not compaction.fits(live.sum(1)[None], new):
        return
    line, cell, filled = jax.tree.map(np.asarray, compaction.choose(live, new))
    assert sorted(cell[filled]) == np.flatnonzero(live).tolist()
    own_line = np.repeat(line, new.cells)
    np.testing.assert_array_equal(cell[filled] // old.cells, own_line[filled])


def test_fits_counts_the_lines_of_the_fullest_shard():
    live = np.array([[4, 1, 0], [3, 3, 3]])
    assert compaction.fits(live, Grid(6, 2)) and not compaction.fits(live, Grid(5, 2))
    assert compaction.fits(live, Grid(9, 1)) and not compaction.fits(live, Grid(8, 1))


def many_stops() -> np.ndarray:
    """Every fifth token stops: half of the rows do within four tokens."""
    table = Policy.stop_table()
    table[:, ::5] = 2
    return table


@pytest.fixture(scope="module", params=[MESHES[0], pytest.param(MESHES[1], marks=pytest.mark.slow)], ids=["one", "cube"])
def moving(request):
    """A policy on a mesh of its own."""
    return Policy(request.param, request.param.data * request.param.fsdp * request.param.tensor)


@contextlib.contextmanager
def moves(policy: Policy):
    """Within, the policy's rows move twice, 32 cells to 8, and its cache grows once; yields its pieces when they are there.

    No other policy samples within: its pieces would be of these grids too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "FIRST_WIDTH", 6)
        patch.setattr(compaction, "FEWEST_CELLS", 8 // policy.programs.sampling_layout.row_shards)
        yield policy.programs._pieces
    policy.programs._pieces.clear()


def test_moving_rows_changes_nothing(one, moving):
    draws = [(0, 1, 2, 3), (5, 1, 2, 3)]
    expected = [one.sample(words=words, table=many_stops()) for words in draws]
    assert not one.programs._pieces  # in one program, in which nothing moves
    with moves(moving) as compiled:
        for words, rollout in zip(draws, expected, strict=True):
            assert_same_rows(moving.sample(words=words, table=many_stops()), rollout)
        (pieces,) = compiled.values()
        called = set()
        for name, piece in pieces.items():
            pieces[name] = lambda *given, name=name, piece=piece: (called.add(name), piece(*given))[1]
        moving.sample(words=(7, 1, 2, 3), table=many_stops())
    kinds = [name if isinstance(name, str) else name[0] for name in called]
    assert [kinds.count(kind) for kind in ("begin", "move", "grow", "finish")] == [1, 2, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("moving", MESHES[1:], ids=["cube"], indirect=True)
def test_moving_rows_keeps_their_tags(one, moving):
    prompts, tagged = prompts_allowing(one, some_allowed(one.Q)), {"trie": trie(), "tag_width": W, "table": many_stops()}
    expected = one.sample(prompts, **tagged)
    with moves(moving) as compiled:
        found = moving.sample(prompts, **tagged)
        pieces = dict(next(iter(compiled.values())))
    assert_same_rows(found, expected)
    for name in ("state", "language"):
        np.testing.assert_array_equal(getattr(found.tags, name), getattr(expected.tags, name))
    np.testing.assert_array_equal(found.action_mask, expected.action_mask)
    for name, piece in pieces.items():
        if name[0] == "move":  # rows stay in their shard
            assert "all-gather" not in piece.as_text() and "all-to-all" not in piece.as_text()
