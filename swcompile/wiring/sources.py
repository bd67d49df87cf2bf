"""Draw which earlier maps a layer shall read: without replacement, by reach, in time that does not grow with the candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from swcompile.graph import UNREACHABLE
from swcompile.wiring.blocks import Atlas, Piece
from swcompile.wiring.draw import Draw
from swcompile.wiring.eligible import Site

ASIDE = 2
"""The distance at which a source counts that no path joins to the reader (a parallel branch): the smallest long-range one."""


def weights_of(site: Site, reach: str, distance: NDArray[np.int32] | None) -> NDArray[np.float64] | None:
    """Return the weight of each available piece: distance to the power -2 for "near", 1 for "far"; None where all are equal."""
    if reach == "uniform":
        return None
    assert distance is not None
    producers = site.catalogue.producers[: site.available]
    steps = distance[producers].astype(np.float64)
    steps[steps >= UNREACHABLE] = ASIDE
    for producer, inside in site.far.items():
        steps[producers == producer] = inside
    steps = np.maximum(steps, 1.0)
    weights = 1.0 / (steps * steps) if reach == "near" else steps
    weights[site.barred] = 0.0
    return weights


def draw_pieces(site: Site, draw: Draw, weights: NDArray[np.float64] | None) -> Iterator[Piece]:
    """Yield all candidates of a site in random order.

    The first half by drawing again where one came twice, which takes two draws a piece at most; what is left, or where the
    weights let few come, by listing it.
    """
    pieces, count = site.catalogue.pieces, site.candidates
    seen: set[int] = set()
    tries = 0
    while len(seen) * 2 < count and tries <= 4 * len(seen) + 64:
        batch = _batch(site, draw, weights, 8 + len(seen))
        tries += len(batch)
        for index in batch:
            if index not in seen:
                seen.add(index)
                yield pieces[index]
    taken = np.concatenate([site.barred, np.array(sorted(seen), np.int64)])
    if weights is None:
        rest = np.setdiff1d(np.arange(site.available), taken)
        yield from (pieces[index] for index in draw.shuffled(rest.tolist()))
        return
    weights = weights.copy()
    weights[taken] = 0.0
    while (weights > 0).any():
        index = _batch(site, draw, weights, 1)[0]
        weights[index] = 0.0
        yield pieces[index]


def _batch(site: Site, draw: Draw, weights: NDArray[np.float64] | None, count: int) -> list[int]:
    if weights is None:
        ranks = draw.integers(site.candidates, count)
        gaps = site.barred - np.arange(len(site.barred))
        return [int(index) for index in ranks + np.searchsorted(gaps, ranks, side="right")]
    total = np.cumsum(weights)
    heaviest = int(np.argmax(weights))  # for the last grain of rounding, at which the search may run past the end
    found = np.searchsorted(total, draw.uniforms(count) * total[-1], side="right").tolist()
    return [index if index < len(total) else heaviest for index in found]


def fill(atlas: Atlas, widths: Sequence[int], stream: Iterator[Piece]) -> list[list[Piece]]:
    """Fill slots of the given widths, each exactly, with pieces from the stream.

    A piece too wide is cut; what is cut off serves only when the stream has run dry. The stream must hold enough channels.
    """
    cut_off: list[Piece] = []
    filled: list[list[Piece]] = []
    for width in widths:
        slot: list[Piece] = []
        missing = width
        while missing:
            piece = next(stream, None) or cut_off.pop()
            if piece.width > missing:
                piece, rest = atlas.split(piece, missing)
                cut_off.append(rest)
            slot.append(piece)
            missing -= piece.width
        filled.append(slot)
    return filled
