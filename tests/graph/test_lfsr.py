from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scotopia.graph.lfsr import BITS, TAPS, RowRegisters, row_seeds

SEEDS = st.integers(0, 2**32 - 1)


def clocks(word: int) -> Iterator[tuple[int, int]]:
    """Clock a register bit by bit, for ever: the bit that comes out and the word that stays."""
    while True:
        out = word & 1
        fed_back = (word ^ word >> 1 ^ word >> 2 ^ word >> 22) & 1
        word = word >> 1 | fed_back << 31
        yield out, word


def shifted_row(register: Iterator[tuple[int, int]], width: int) -> tuple[list[int], int]:
    """Fill a row as hardware does: every cell takes the bit of the cell before it."""
    cells = [0] * width
    drawn = list(islice(register, width))
    for out, _ in drawn:
        cells = [out, *cells[:-1]]
    return cells, drawn[-1][1]


@settings(deadline=None)
@given(
    height=st.integers(1, 4),
    width=st.integers(1, 50),
    seed=SEEDS,
    counts=st.lists(st.integers(1, 9)),
)
def test_planes_are_what_a_shift_register_along_the_row_holds(
    height: int, width: int, seed: int, counts: list[int]
) -> None:
    registers = RowRegisters(height, width, seed)
    naive = [clocks(int(word)) for word in row_seeds(height, seed)]
    for count in counts:
        planes = registers.planes(count)
        for plane in planes:
            rows = [shifted_row(register, width) for register in naive]
            assert plane.tolist() == [cells for cells, _ in rows]
        assert registers.words.tolist() == [word for _, word in rows]


def test_a_large_array_matches_too() -> None:
    # Blocks of bits grow with what is known: these are longer than the others' by far.
    planes = RowRegisters(2, 300, 5).planes(20)
    for row, start in enumerate(row_seeds(2, 5)):
        register = clocks(int(start))
        for plane in planes:
            assert plane[row].tolist() == shifted_row(register, 300)[0]


@settings(deadline=None)
@given(
    height=st.integers(1, 4),
    width=st.integers(1, 50),
    seed=SEEDS,
    counts=st.tuples(*[st.integers(0, 9)] * 2),
)
def test_drawing_twice_is_drawing_all_at_once(
    height: int, width: int, seed: int, counts: tuple[int, int]
) -> None:
    registers = RowRegisters(height, width, seed)
    parts = [registers.planes(count) for count in counts]
    together = RowRegisters(height, width, seed).planes(sum(counts))
    assert together.shape == (sum(counts), height, width)
    np.testing.assert_array_equal(np.concatenate(parts), together)


def test_planes_are_integer_codes() -> None:
    planes = RowRegisters(3, 5, 1).planes(2)
    assert planes.dtype == np.int64
    assert set(planes.ravel().tolist()) == {0, 1}


def test_a_register_runs_through_all_words_but_0() -> None:
    # Its polynomial is primitive: x has the order 2**32 - 1 modulo it, and none of its divisors.
    polynomial = 1 << BITS | sum(1 << tap for tap in TAPS)
    assert polynomial == 1 << 32 | 1 << 22 | 1 << 2 | 1 << 1 | 1

    def product(a: int, b: int) -> int:
        total = 0
        for place in range(BITS):
            total ^= (b >> place & 1) * (a << place)
        for place in range(2 * BITS, BITS - 1, -1):
            total ^= (total >> place & 1) * (polynomial << (place - BITS))
        return total

    def power(exponent: int) -> int:
        result, square = 1, 2  # 2 is x
        while exponent:
            result = product(result, square) if exponent & 1 else result
            square, exponent = product(square, square), exponent >> 1
        return result

    period = 2**32 - 1
    factors = (3, 5, 17, 257, 65537)
    assert np.prod(factors) == period
    assert power(period) == 1
    assert all(power(period // factor) != 1 for factor in factors)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32 - 0x9E3779B9])
def test_no_register_ever_is_0(seed: int) -> None:
    registers = RowRegisters(64, 7, seed)
    for _ in range(200):
        assert registers.words.all()
        registers.planes(1)


def test_a_start_word_that_would_be_0_is_1() -> None:
    assert row_seeds(1, 2**32 - 0x9E3779B9).tolist() == [1]


@pytest.mark.parametrize(
    ("hashed", "word"), [(1, 0x514E28B7), (0xFFFFFFFF, 0x81F16F39)]
)  # MurmurHash3 of no bytes at all, with these seeds
def test_start_words_are_the_hash_of_seed_and_row(hashed: int, word: int) -> None:
    for row in range(3):
        seed = (hashed - 0x9E3779B9 * (row + 1)) % 2**32
        assert row_seeds(3, seed)[row] == word


@settings(deadline=None)
@given(seed=SEEDS)
def test_rows_start_from_different_words(seed: int) -> None:
    words = row_seeds(1000, seed)
    assert words.dtype == np.uint32
    assert len(set(words.tolist())) == 1000


def test_a_taller_array_has_the_same_rows() -> None:
    np.testing.assert_array_equal(
        RowRegisters(9, 4, 3).planes(5)[:, :6], RowRegisters(6, 4, 3).planes(5)
    )


def test_the_seed_decides() -> None:
    first, same, other = (RowRegisters(8, 8, seed).planes(4) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, same)
    assert 0.3 < (first != other).mean() < 0.7


def test_bits_are_balanced_and_independent_of_their_neighbours() -> None:
    planes = RowRegisters(128, 128, 1).planes(64)
    beside = planes[:, :, 1:] ^ planes[:, :, :-1]
    below = planes[:, 1:] ^ planes[:, :-1]
    diagonal = planes[:, 1:, 1:] ^ planes[:, :-1, :-1]
    later = planes[1:] ^ planes[:-1]
    step_later = planes[8:] ^ planes[:-8]
    for bits in (planes, beside, below, diagonal, later, step_later):
        assert abs(bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(bits.size)
    for axes in ((0, 1), (0, 2), (1, 2)):  # by column, by row, by plane
        by_line = planes.mean(axes)
        assert abs(by_line - 0.5).max() < 4.5 * 0.5 * np.sqrt(by_line.size / planes.size)
