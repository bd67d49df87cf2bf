"""Lower gathers: put the maps that layers gather from into slabs, and run gather, norm, activation and layer as one.

clusters    which layers have outputs that read in clusters (support_of)
sites       which layers of a graph read a gather, and what stands between (find_sites)
regions     which maps share a slab, and where in it each lies (lay_out_regions)
run         what a lowered graph calls; run_clusters, for layers in clusters; run_training, what one for train mode does
operations  what a gather costs, form by form; calibrate times these, rates keeps and predicts them; gpus tells GPUs apart
costs       which form each gather takes (choose)
emit        rewrite the graph to write the slabs and read from them (lowered), or to train with little kept (trained)
lowering    all of this for one kind of call (Lowering)
"""

from swcompile.lower.lowering import BACKENDS, Lowering

__all__ = ["BACKENDS", "Lowering"]
