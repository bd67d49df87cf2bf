"""Rows of bits: a boolean matrix with 64 columns to the word, lowest bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from swcompile.metrics.cells import Ints

Words = NDArray[np.uint64]

TILE = 512
"""Rows that are unpacked at a time: no boolean matrix larger than TILE rows ever exists."""


def words_for(columns: int) -> int:
    """Return how many words hold this many bits."""
    return -(-columns // 64)


def pack(flags: NDArray[np.bool_]) -> Words:
    """Pack (rows, columns) into (rows, words)."""
    packed = np.packbits(flags, axis=1, bitorder="little")
    wide = np.zeros((len(flags), 8 * words_for(flags.shape[1])), np.uint8)
    wide[:, : packed.shape[1]] = packed
    return wide.view(np.uint64)


def unpack(rows: Words, columns: int) -> NDArray[np.bool_]:
    """Unpack (rows, words) into (rows, columns)."""
    return np.unpackbits(np.ascontiguousarray(rows).view(np.uint8), axis=1, count=columns, bitorder="little").view(np.bool_)


def from_pairs(row: Ints, column: Ints, shape: tuple[int, int]) -> Words:
    """Return the matrix of this shape that is set at each (row, column); no pair may occur twice."""
    width = words_for(shape[1])
    made = np.zeros(shape[0] * width, np.uint64)
    # The pairs are distinct, so adding is or-ing; `add.at` has a fast path that `bitwise_or.at` has not.
    np.add.at(made, row * width + (column >> 6), np.uint64(1) << (column & 63).astype(np.uint64))
    return made.reshape(shape[0], width)


def transpose(rows: Words, columns: int) -> Words:
    """Return the transposed matrix (columns, words)."""
    made = np.zeros((columns, words_for(len(rows))), np.uint64)
    for start in range(0, len(rows), TILE):
        tile = pack(np.ascontiguousarray(unpack(rows[start : start + TILE], columns).T))
        made[:, start // 64 : start // 64 + tile.shape[1]] = tile
    return made


def take_columns(rows: Words, chosen: Ints, columns: int) -> Words:
    """Return the matrix of the chosen columns."""
    made = np.zeros((len(rows), words_for(len(chosen))), np.uint64)
    for start in range(0, len(rows), TILE):
        made[start : start + TILE] = pack(unpack(rows[start : start + TILE], columns)[:, chosen])
    return made


FEW_WEIGHTS = 8
"""Up to so many different weights, counting the bits of each is faster than unpacking them."""


def _weigh_by_kind(rows: Words, weight: Ints, kinds: Ints) -> Ints:
    made = np.zeros(len(rows), np.int64)
    for kind in kinds.tolist():
        chosen = rows if len(kinds) == 1 else rows & pack((weight == kind)[None])
        made += kind * np.bitwise_count(chosen).sum(axis=1, dtype=np.int64)
    return made


def weigh(rows: Words, weight: Ints) -> Ints:
    """Return the total weight of the set bits of each row, given the weight of each column."""
    kinds = np.unique(weight)
    if len(kinds) <= FEW_WEIGHTS:
        return _weigh_by_kind(rows, weight, kinds)
    made = np.zeros(len(rows), np.int64)
    kind = np.float32 if weight.sum() < 1 << 24 else np.float64  # sums of whole numbers are exact up to there
    for start in range(0, len(rows), TILE):
        tile = unpack(rows[start : start + TILE], len(weight)).astype(kind)
        made[start : start + TILE] = (tile @ weight.astype(kind)).astype(np.int64)
    return made
