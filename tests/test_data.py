from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_ml import data
from jaxrl_ml.types import Example, Prompts, Rollout, Scores, UserError

PAD, EOS = 0, 1


class Letters:
    """A tokenizer of one token a character; messages become `role:content;`."""

    pad_id, eos_id, stop_ids, vocab_size = PAD, EOS, (EOS,), 130

    def encode(self, texts):
        return [[ord(c) + 2 for c in text] for text in texts]

    def encode_prompts(self, prompts):
        return self.encode([p if isinstance(p, str) else "".join(f"{m['role']}:{m['content']};" for m in p) for p in prompts])

    def decode(self, rows):
        return ["".join(chr(i - 2) for i in row if i > EOS) for row in rows]


class Lazy:
    """A task of any size, a function of the index, which counts what is read."""

    def __init__(self, size):
        self.size, self.reads = size, 0

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        assert 0 <= i < self.size
        self.reads += 1
        rng = random.Random(i)
        return example(i, "p" * rng.randint(1, 12), "c" * rng.randint(0, 38))


def example(i, prompt, completion=None):
    return Example(id=f"x{i}", task="letters", fields={"prompt": f"{i}{prompt}"}, completion=completion)


RENDER = data.PromptRenderer(Letters())
USER = [{"role": "user", "content": "hi"}]


def leaves(batch):
    examples, prompts = batch if isinstance(batch[0], list) else ([], batch)
    return [e.id for e in examples], [x.tolist() for x in jax.tree.leaves(prompts)]


# ---------------------------------------------------------------------------------------------------------------- prompts


def test_renderer_reads_the_field_or_the_format_and_puts_the_system_prompt_first():
    examples = [example(1, "a"), example(2, "b")]
    decode = Letters().decode
    assert decode(RENDER(examples)) == ["1a", "2b"]
    assert decode(data.PromptRenderer(Letters(), lambda e: "Q" + e.id)(examples)) == ["Qx1", "Qx2"]
    chat = data.PromptRenderer(Letters(), lambda e: USER, "be brief")
    assert decode(chat(examples)) == ["system:be brief;user:hi;"] * 2
    assert len(USER) == 1  # the format's own list is left alone


@pytest.mark.parametrize(
    ("render", "field", "words"),
    [
        (RENDER, {}, ("'x'", "prompt_format")),
        (RENDER, {"prompt": ""}, ("'x'", "no tokens")),
        (data.PromptRenderer(Letters(), None, "be brief"), {"prompt": "a"}, ("'be brief'", "'x'", "messages")),
    ],
)
def test_renderer_names_what_is_wrong(render, field, words):
    with pytest.raises(UserError) as caught:
        render([Example(id="x", task="t", fields=field)])
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_prompts_are_left_padded():
    task = [Lazy(100)[i] for i in range(9)]
    prompts = data.make_prompts(task, RENDER, width=16, first=5)
    assert [x.dtype for x in jax.tree.leaves(prompts)] == [np.int32, bool, np.uint32]
    assert prompts.mask[:, -1].all()
    assert (np.diff(prompts.mask.astype(int), axis=1) >= 0).all()  # padding, then prompt
    assert [row[mask].tolist() for row, mask in zip(prompts.tokens, prompts.mask, strict=True)] == RENDER(task)
    assert (prompts.tokens[~prompts.mask] == PAD).all()
    assert prompts.index.tolist() == list(range(5, 14))


def test_long_prompt_is_an_error_that_crosses_the_thread():
    task = [example("long", "abcdefgh")]
    stream = data.prompt_batches(task, RENDER, num_prompts=1, width=11, seed=0)
    with pytest.raises(UserError, match=r"'xlong' has 12 tokens, over sampling\.max_prompt_tokens=11"):
        next(stream)
    stream.close()


def prompt_stream(task, **kwargs):
    return data.prompt_batches(task, RENDER, **{"num_prompts": 6, "width": 24, "seed": 3, **kwargs})


def packed_stream(task, **kwargs):
    return data.packed_batches(task, RENDER, **{"batch_size": 4, "sequence_length": 64, "seed": 3, **kwargs})


@pytest.mark.parametrize("size", [1, 7, 48])
def test_every_epoch_has_each_example_once_in_another_order(size):
    stream = prompt_stream([example(i, "a") for i in range(size)], num_prompts=4)
    epochs = 4
    ids = [e.id for examples, _ in itertools.islice(stream, size * epochs // 4) for e in examples]
    stream.close()
    orders = [tuple(ids[i * size : (i + 1) * size]) for i in range(epochs)]
    assert all(Counter(order) == Counter(f"x{i}" for i in range(size)) for order in orders)
    assert len(set(orders)) == (1 if size == 1 else epochs)


def test_shuffle_depends_on_the_seed_in_every_epoch():
    task = [example(i, "a") for i in range(32)]

    def ids(seed, steps):
        stream = prompt_stream(task, num_prompts=32, seed=seed)
        found = [[e.id for e in examples] for examples, _ in itertools.islice(stream, steps)]
        stream.close()
        return found

    assert ids(0, 2) == ids(0, 2)
    assert ids(0, 2)[1] != ids(1, 1)[0]  # epoch 1 of a seed is not epoch 0 of the next


@pytest.mark.parametrize("count", [2, 3])
def test_steps_do_not_depend_on_the_number_of_processes(count):
    task = [example(i, "a") for i in range(20)]
    whole = prompt_stream(task)
    shares = [prompt_stream(task, block=p, blocks=count) for p in range(count)]
    for _ in range(8):
        examples, prompts = next(whole)
        parts = [next(share) for share in shares]
        assert list(itertools.chain.from_iterable(part[0] for part in parts)) == examples
        assert all(np.array_equal(np.concatenate([p[1][i] for p in parts]), y) for i, y in enumerate(jax.tree.leaves(prompts)))
    for stream in (whole, *shares):
        stream.close()
    with pytest.raises(UserError, match="prompts_per_step=6 must be a multiple of the 4 processes"):
        prompt_stream(task, blocks=4)


@pytest.mark.parametrize(
    ("make", "block"), [(prompt_stream, {}), (prompt_stream, {"block": 1, "blocks": 2}), (packed_stream, {})]
)
def test_a_restored_stream_goes_on_exactly(make, block):
    stream = make(Lazy(700), **block)
    states, batches = [], []
    for batch in itertools.islice(stream, 40):
        batches.append(leaves(batch))
        states.append(json.dumps(stream.get_state()))
    stream.close()
    other = make(Lazy(700), **block)
    for at in (0, 1, 7, 20, 33):
        if at % 2:
            next(other)  # a stream that already runs ahead can be set back, too
        other.set_state(json.loads(states[at]))
        assert json.dumps(other.get_state()) == states[at]
        assert [leaves(batch) for batch in itertools.islice(other, 6)] == batches[at + 1 : at + 7]
    other.close()
    assert len(set(states)) == 40


@pytest.mark.parametrize("make", [prompt_stream, packed_stream])
def test_a_task_of_a_billion_is_read_only_where_it_is_used(make):
    task = Lazy(10**9)
    stream = make(task)
    next(stream)
    stream.close()
    assert 0 < task.reads <= 4 * 256


@pytest.mark.parametrize("size", [0, 2**32])
def test_sizes_that_cannot_be_shuffled_are_refused(size):
    with pytest.raises(UserError, match=f"task of {size} examples"):
        prompt_stream(Lazy(size))


def test_evaluation_takes_the_first_examples_in_order_in_one_shape():
    task = Lazy(50)
    batches = list(data.evaluation_batches(task, RENDER, num_prompts=11, batch_size=4, width=24))
    assert [e.id for examples, _ in batches for e in examples] == [f"x{i}" for i in range(11)]
    assert {p.tokens.shape for _, p in batches} == {(4, 24)}
    assert np.concatenate([p.index for _, p in batches]).tolist() == list(range(12))
    last = batches[-1][1]
    assert np.array_equal(last.tokens[3], last.tokens[2]) and np.array_equal(last.mask[3], last.mask[2])
    with pytest.raises(UserError, match=r"num_prompts=51 exceeds the task's 50 examples"):
        data.evaluation_batches(task, RENDER, num_prompts=51, batch_size=4, width=24)


# ---------------------------------------------------------------------------------------------------------------- packing


def unpack(batch):
    """(ids, loss targets) of every segment, in the order of rows and segments."""
    for tokens, targets, loss, segments, positions in zip(*batch, strict=True):
        for segment in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == segment)
            assert (np.diff(at) == 1).all() and positions[at].tolist() == list(range(len(at)))
            assert (tokens[at][1:] == targets[at][:-1]).all()
            yield (*tokens[at].tolist(), int(targets[at][-1])), targets[at][loss[at]].tolist()


def test_packed_rows_hold_each_example_whole_with_the_loss_on_its_completion():
    task = Lazy(300)
    stream = packed_stream(task)
    seen = Counter()
    for batch in itertools.islice(stream, 120):
        assert [x.dtype for x in batch] == [np.int32, np.int32, bool, np.int32, np.int32]
        assert {x.shape for x in batch} == {(4, 64)}
        empty = batch.segments == 0
        assert not batch.loss_mask[empty].any()
        assert (
            (batch.tokens[empty] == PAD).all() and (batch.targets[empty] == PAD).all() and (batch.positions[empty] == 0).all()
        )
        for ids, learned in unpack(batch):
            found = task[int("".join(itertools.takewhile(str.isdigit, Letters().decode([ids])[0])))]
            prompt, completion = RENDER([found])[0], Letters().encode([found.completion])[0]
            assert list(ids) == [*prompt, *completion, EOS]
            assert learned == [*completion, EOS]
            seen[found.id] += 1
    position = stream.get_state()["position"]
    stream.close()
    assert seen.total() == position > 2 * 300  # the state is what was consumed: nothing lost, nothing twice
    assert len(seen) == 300 and set(seen.values()) <= {position // 300, position // 300 + 1}


def test_first_fit_places_a_prefix_without_overlap_and_wastes_little():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows, width = int(rng.integers(1, 40)), int(rng.integers(16, 300))
        lengths = rng.integers(1, rng.integers(2, width + 1), size=4 * rows * width // 2)
        places = data._first_fit(lengths, rows, width)
        used = np.zeros((rows, width), int)
        for (row, column, _), length in zip(places, lengths, strict=False):
            assert column + length <= width
            used[row, column : column + length] += 1
        assert len(places) >= 1 and used.max() == 1
        for row in range(rows):  # segments count from 1 along the row
            mine = places[places[:, 0] == row]
            assert mine[np.argsort(mine[:, 1]), 2].tolist() == list(range(1, len(mine) + 1))
    lengths = rng.integers(20, 61, size=400)
    filled = lengths[: len(data._first_fit(lengths, 32, 256))].sum()
    assert filled > 0.95 * 32 * 256


@pytest.mark.parametrize(
    ("completion", "words"), [(None, "'x1' has no completion"), ("c" * 63, r"'x1' has 66 tokens .* sequence_length=64")]
)
def test_an_example_that_cannot_be_learned_from_is_named(completion, words):
    stream = packed_stream([example(1, "p", completion)])
    with pytest.raises(UserError, match=words):
        next(stream)
    stream.close()


def test_an_example_that_just_fits_takes_one_row():
    stream = packed_stream([example(1, "p", "c" * 61)])
    batch = next(stream)
    stream.close()
    assert (batch.segments.sum(axis=1) == 63).all() and (batch.loss_mask.sum(axis=1) == 62).all()


# ------------------------------------------------------------------------------------------------------------- experience


def test_the_next_chunk_is_sampled_while_one_is_judged():
    started = [threading.Event() for _ in range(4)]
    most_ahead = 0

    def sample(i):
        started[i].set()
        return [example(i, "a")], i

    def judge(examples, i):
        nonlocal most_ahead
        if i < 3:
            assert started[i + 1].wait(20)  # would never come if sampling waited for this call
        most_ahead = max(most_ahead, sum(event.is_set() for event in started) - 1 - i)
        return examples[0].id, i, threading.current_thread() is threading.main_thread()

    assert list(data.experience(sample, 4, judge)) == [(f"x{i}", i, True) for i in range(4)]
    assert most_ahead == 1


@pytest.mark.parametrize("fails", ["sample", "judge"])
def test_errors_in_experience_keep_their_type(fails):
    def step(name, i):
        if name == fails and i == 1:
            raise UserError(f"{name} failed")
        return i

    results = data.experience(lambda i: ([], step("sample", i)), 3, lambda _, i: step("judge", i))
    assert next(results) == 0
    with pytest.raises(UserError) as caught:
        next(results)
    assert str(caught.value) == f"{fails} failed"


def test_closed_streams_leave_no_threads():
    before = set(threading.enumerate())
    streams = [prompt_stream(Lazy(100)), packed_stream(Lazy(100)), data.experience(lambda i: ([], i), 9, lambda _, i: i)]
    for stream in streams:
        next(stream)
    assert set(threading.enumerate()) - before
    for stream in streams:
        stream.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()


def test_open_streams_do_not_keep_the_interpreter_alive():
    program = """
from jaxrl_ml import data
from tests.test_data import Lazy, packed_stream, prompt_stream
streams = [prompt_stream(Lazy(100)), packed_stream(Lazy(100)), data.experience(lambda i: ([], i), 9, lambda _, i: i)]
print(len([next(stream) for stream in streams]))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


# ---------------------------------------------------------------------------------------------------------------- scoring


def test_rows_are_decoded_to_their_lengths():
    texts = ["abc", "", "z"]
    completions = np.full((3, 5), ord("?") + 2, np.int32)
    for row, ids in zip(completions, Letters().encode(texts), strict=True):
        row[: len(ids) + 1] = [*ids, EOS]
    assert data.decode_rows(Letters(), completions, np.array([4, 1, 2], np.int32)) == texts


def test_scores_see_the_example_of_their_group_and_arrays_become_scores():
    examples = [example(i, "a") for i in range(3)]

    def reward(texts, rows):
        assert [e.id for e in rows] == ["x0", "x0", "x1", "x1", "x2", "x2"]
        return np.array([len(t) for t in texts]) / 2

    scores = data.score_rows(reward, ["", "a", "aa", "aaa", "b", "bb"], examples, 2)
    assert scores.rewards.dtype == np.float32 and scores.rewards.tolist() == [0, 0.5, 1, 1.5, 0.5, 1]
    assert scores.correct.tolist() == [False, False, True, True, False, True]
    strange = data.score_rows(lambda t, e: np.array([np.nan, np.inf, 1e300]), ["a"] * 3, examples, 1)
    assert np.isnan(strange.rewards[0]) and strange.correct.tolist() == [False, True, True]


def test_scores_pass_through_whole():
    given = Scores(
        rewards=np.array([1, 0]),
        correct=np.array([True, False]),
        parts={"form": np.array([0.5, 0.0])},
        timeout=np.array([False, True]),
    )
    scores = data.score_rows(lambda t, e: given, ["a", "b"], [example(0, "a")], 2)
    assert scores.parts["form"].dtype == scores.rewards.dtype == np.float32
    assert scores.rewards.tolist() == [1, 0] and scores.parts["form"].tolist() == [0.5, 0]
    assert scores.correct.tolist() == [True, False] and scores.timeout.tolist() == [False, True]


def bad_reward(result):
    def my_reward(texts, examples):
        return result

    return my_reward


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (np.zeros(3), r"rewards of shape \(3,\)"),
        (np.zeros((2, 1)), r"rewards of shape \(2, 1\)"),
        (np.array(["1", "2"]), "one number per text"),
        (Scores(np.zeros(2), np.zeros(2)), "correct of .* one bool per text"),
        (Scores(np.zeros(2), np.zeros(2, bool), {"p": np.zeros(1)}), "part 'p' of shape"),
        (Scores(np.zeros(2), np.zeros(2, bool), details={"d": np.array(["a", "b"])}), "detail 'd' of shape"),
        (Scores(np.zeros(2), np.zeros(2, bool), {}, np.zeros(3, bool)), "timeout of shape"),
        (Scores(np.zeros(2), np.zeros(2, bool), details={"step": np.zeros(2)}), "a detail 'step'.* rename it"),
    ],
)
def test_a_reward_of_another_shape_is_named(result, words):
    with pytest.raises(UserError, match=words) as caught:
        data.score_rows(bad_reward(result), ["a", "b"], [example(0, "a")], 2)
    assert "my_reward" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [1, 9, 24, 64, 1000, 1024])
def test_widths_are_few_and_the_smallest_that_hold_the_rows(width):
    buckets = {data.completion_width(np.array([1, longest]), width) for longest in range(1, width + 1)}
    assert len(buckets) <= 5 and max(buckets) == width
    assert all(bucket % 8 == 0 for bucket in buckets - {width})
    for longest in range(1, width + 1):
        assert data.completion_width(np.array([longest, 1]), width) == min(b for b in buckets if b >= longest)
    with pytest.raises(ValueError, match="over the width"):
        data.completion_width(np.array([width + 1]), width)


@pytest.mark.parametrize("xp", [np, jnp])
def test_trim_cuts_the_completion_leaves_only(xp):
    prompts = Prompts(xp.ones((2, 9), xp.int32), xp.ones((2, 9), bool), xp.arange(2, dtype=xp.uint32))
    completions = xp.arange(24, dtype=xp.int32).reshape(4, 6)
    rollout = Rollout(
        prompts, completions, xp.full((4,), 3), completions > 5, completions.astype(xp.float32), xp.zeros((4,), bool)
    )
    with jax.transfer_guard("disallow"):
        cut = data.trim(rollout, 4)
    assert cut.prompts is prompts and cut.lengths is rollout.lengths and cut.truncated is rollout.truncated
    for before, after in zip(rollout, cut, strict=True):
        if after is not prompts and after is not None and after.ndim == 2:
            assert after.shape == (4, 4) and np.array_equal(after, np.asarray(before)[:, :4])
