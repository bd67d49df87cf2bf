"""Merge classes that turn out to have the same neighbours: cells are cut by construction, equal rows show only afterwards."""

from __future__ import annotations

import numpy as np

from swcompile.metrics.bits import take_columns
from swcompile.metrics.channels import Classes


def without_twins(graph: Classes) -> Classes:
    """Return the same graph with one class for all classes of equal neighbours; itself where that saves little.

    Equal neighbours are never neighbours of each other, so merged classes have no links inside either.
    """
    seen: dict[bytes, int] = {}
    matched = set(graph.matches[:, 0].tolist())  # they stay: node i of one has its own neighbours
    keys = (row.tobytes() + (b"%d" % place if place in matched else b"") for place, row in enumerate(graph.rows))
    label = np.array([seen.setdefault(key, len(seen)) for key in keys], np.int64)
    if len(seen) > 0.9 * graph.count:
        return graph
    first = np.unique(label, return_index=True)[1].astype(np.int64)
    weight = np.bincount(label, graph.weight, len(seen)).astype(np.int64)
    return Classes(take_columns(graph.rows[first], first, graph.count), weight, label[graph.matches])
