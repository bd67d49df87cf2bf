"""Lower gathers: put the maps that layers gather from into slabs, and run gather, norm, activation and layer as one.

sites     which layers of a graph read a gather, and what stands between (find_sites)
regions   which maps share a slab, and where in it each lies (lay_out_regions)
emit      rewrite the graph to write the slabs and read from them (emit)
run       what the rewritten graph calls
"""

from swcompile.lower.emit import BACKENDS, lowered
from swcompile.lower.sites import Site, find_sites

__all__ = ["BACKENDS", "Site", "find_sites", "lowered"]
