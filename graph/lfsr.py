"""Random bits that hardware and the golden model share: a shift register for each row of cells.

A register is a 32-bit Fibonacci LFSR with the polynomial x^32 + x^22 + x^2 + x + 1, so that it
runs through all words but 0 (taps 32, 22, 2, 1 of AMD XAPP052, table 3). One clock gives out bit
0, moves every other bit one place down, and sets bit 31 to the XOR of what bits 0, 1, 2 and 22
were: written as one sequence, bit n + 32 is the XOR of bits n, n + 1, n + 2 and n + 22.

A **plane** is one random bit for every cell. It takes as many clocks as a row has cells; each bit
enters the row at column 0 and moves one column up with each later one, so that the bit of clock k
ends in column width - 1 - k.
"""

import numpy as np
from numpy.typing import NDArray

from .qformat import IntArray

#: Bits of a register.
BITS = 32

#: Exponents of the polynomial below the highest: the bits whose XOR is fed back.
TAPS = (0, 1, 2, 22)

_PLACES = np.arange(BITS, dtype=np.uint32)


def row_seeds(height: int, seed: int) -> NDArray[np.uint32]:
    """Word that the register of each row starts from, (height,), never 0.

    MurmurHash3's 32-bit finalizer (A. Appleby, 2011) of seed + 0x9E3779B9 * (row + 1) modulo
    2**32, and 1 where that is 0. Both steps are one-to-one: no word but 1 can come twice.

    Parameters
    ----------
    seed
        0 to 2**32 - 1.
    """
    low = 2**BITS - 1
    word = (seed + 0x9E3779B9 * np.arange(1, height + 1, dtype=np.uint64)) & low
    word = (word ^ (word >> 16)) * 0x85EBCA6B & low
    word = (word ^ (word >> 13)) * 0xC2B2AE35 & low
    words: NDArray[np.uint32] = np.maximum(word ^ (word >> 16), 1).astype(np.uint32)
    return words


class RowRegisters:
    """The registers of all rows of an array, from their start words on."""

    def __init__(self, height: int, width: int, seed: int) -> None:
        self.width = width
        bits = row_seeds(height, seed)[:, None] >> _PLACES & 1
        #: (height, 32), bit 0 first: what the next 32 clocks give out
        self._bits = bits.astype(np.uint8)

    @property
    def words(self) -> NDArray[np.uint32]:
        """What the registers hold, (height,)."""
        words: NDArray[np.uint32] = (self._bits.astype(np.uint32) << _PLACES).sum(1, np.uint32)
        return words

    def planes(self, count: int) -> IntArray:
        """Draw the next planes, (count, height, width) of 0 and 1."""
        clocks = count * self.width
        height = len(self._bits)
        sequence = np.empty((height, BITS + clocks), np.uint8)
        sequence[:, :BITS] = self._bits
        known = BITS
        while known < BITS + clocks:
            # Squared over GF(2), the polynomial is the one with all exponents doubled: with 32 * m
            # bits known, m a power of two, bits m times as far apart give m times as many at once.
            m = 1 << ((known // BITS).bit_length() - 1)
            start = known - BITS * m
            length = min((BITS - TAPS[-1]) * m, BITS + clocks - known)
            new = sequence[:, known : known + length]
            first, *rest = (sequence[:, start + t * m : start + t * m + length] for t in TAPS)
            new[:] = first
            for bits in rest:
                new ^= bits
            known += length
        self._bits = sequence[:, clocks:].copy()
        drawn = sequence[:, :clocks].reshape(height, count, self.width)
        return drawn[:, :, ::-1].swapaxes(0, 1).astype(np.int64)


def plane_number(planes: IntArray) -> IntArray:
    """Numbers (..., 1, H, W) of which planes (..., N, H, W) are the bits, the highest first."""
    weight = 1 << np.arange(planes.shape[-3], dtype=np.int64)[::-1]
    numbers: IntArray = (planes * weight[:, None, None]).sum(-3, keepdims=True)
    return numbers
