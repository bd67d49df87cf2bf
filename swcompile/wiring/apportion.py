"""Share a whole number of blocks out over layers, by largest remainder."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def apportion(share: float, sizes: Sequence[int], units: Sequence[int], least: int = 0) -> list[int]:
    """Return for each of `sizes` a number near share * size, so that all add up to round(share * sum(sizes)).

    >>> apportion(0.3, [8, 8, 8], [1, 1, 1])
    [3, 2, 2]
    """
    return share_out(round(share * sum(sizes)), [share * size for size in sizes], sizes, units, least)


def share_out(total: int, ideal: Sequence[float], sizes: Sequence[int], units: Sequence[int], least: int = 0) -> list[int]:
    """Return for each size a number near its `ideal`, so that all add up to `total`.

    Each number is a multiple of its unit (the groups of a layer), at least `least` units and at most its size. The sum misses
    its target only by less than a unit, where there are no smaller units left, or where the minimum exceeds it.

    >>> share_out(7, [1.2, 2.4, 3.4], [8, 8, 8], [1, 1, 1])
    [1, 3, 3]
    """
    counts = [max(least, int(want / unit)) * unit for want, unit in zip(ideal, units, strict=True)]
    left = total - sum(counts)
    queue = [(count - want, place) for place, (want, count) in enumerate(zip(ideal, counts, strict=True))]
    heapq.heapify(queue)
    while left > 0 and queue:
        behind, place = heapq.heappop(queue)
        unit = units[place]
        if unit <= left and counts[place] + unit <= sizes[place]:
            counts[place] += unit
            left -= unit
            heapq.heappush(queue, (behind + unit, place))
    return counts
