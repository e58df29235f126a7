import pytest
import torch
from scipy import stats

from headstart.randomness import mix, permutation, uniforms

WORD = 1 << 64


def naive_splitmix64(state):
    """The reference implementation in C by Sebastiano Vigna (public domain), in Python's whole numbers."""
    state = (state + 0x9E3779B97F4A7C15) % WORD
    word = state
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return state, word ^ (word >> 31)


def naive_hash(*parts):
    word = 0
    for part in parts:
        word = naive_splitmix64((word + part) % WORD)[1]
    return word


def test_naive_splitmix64_gives_the_published_sequence():
    state, words = 1234567, []
    for _ in range(3):
        state, word = naive_splitmix64(state)
        words.append(word)
    assert words == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("key", [(0, 0, 0, 0), (7, 123, 45, 6), (-1, 2**40, 2**62, 63)])
def test_uniforms_are_splitmix64_seeded_with_the_hashed_key(key):
    seed, step, row, stream = key
    state, expected = naive_hash(seed, step, stream, row), []
    for _ in range(5):
        state, word = naive_splitmix64(state)
        expected.append((word >> 40) / 2**24)
    assert uniforms(seed, step, torch.tensor([row]), stream, 5)[0].tolist() == expected


def test_values_are_pinned():
    assert mix(1, 2, 3) == 3851293329796251419
    assert (uniforms(1, 2, torch.tensor([0, 3]), 4, 2) * 2**24).long().tolist() == [
        [377061, 7570248],
        [14788410, 3310048],
    ]
    assert permutation(6, 1, 2).tolist() == [2, 3, 5, 1, 4, 0]


def test_uniforms_are_uniform():
    draws = uniforms(0, 0, torch.arange(20_000), 0, 5)
    assert draws.dtype == torch.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3
    low_bits = (draws * 2**24).long().flatten() % 64
    assert stats.chisquare(torch.bincount(low_bits, minlength=64).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("changed", ["seed", "step", "stream", "row", "count"])
def test_neighbouring_keys_are_independent(changed):
    rows = torch.arange(50_000)
    first = uniforms(3, 5, rows, 7, 2)
    second = {
        "seed": lambda: uniforms(4, 5, rows, 7, 1),
        "step": lambda: uniforms(3, 6, rows, 7, 1),
        "stream": lambda: uniforms(3, 5, rows, 8, 1),
        "row": lambda: uniforms(3, 5, rows + 1, 7, 1),
        "count": lambda: first[:, 1:],
    }[changed]()
    pair = torch.stack([first[:, 0], second[:, 0]]).double()
    assert not torch.equal(pair[0], pair[1])
    assert stats.pearsonr(*pair.numpy()).pvalue > 1e-3
    cells = (pair * 8).long()
    counts = torch.bincount(cells[0] * 8 + cells[1], minlength=64)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_a_row_has_the_same_draws_wherever_it_stands():
    rows = torch.arange(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    draws = uniforms(1, 2, rows, 3, 4)
    assert torch.equal(uniforms(1, 2, rows[order], 3, 4), draws[order])
    assert torch.equal(uniforms(1, 2, rows[17:18], 3, 4), draws[17:18])


def test_more_draws_leave_the_first_ones_unchanged():
    rows = torch.arange(10)
    assert torch.equal(uniforms(1, 2, rows, 3, 9)[:, :4], uniforms(1, 2, rows, 3, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_uniforms_have_the_same_bits_on_cuda():
    rows = torch.arange(1000)
    assert torch.equal(uniforms(1, 2, rows.cuda(), 3, 4).cpu(), uniforms(1, 2, rows, 3, 4))


def test_mix_depends_on_every_part_and_their_order():
    keys = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)] + [(), (0,), (0, 0), (-1,)]
    seeds = {mix(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_permutation_is_one_and_depends_on_its_key():
    assert sorted(permutation(1000, 1, 2).tolist()) == list(range(1000))
    assert permutation(1000, 1, 2).dtype == torch.int64
    assert torch.equal(permutation(1000, 1, 2), permutation(1000, 1, 2))
    assert not torch.equal(permutation(1000, 1, 2), permutation(1000, 1, 3))
