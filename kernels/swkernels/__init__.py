"""Kernels that read feature maps where they lie: gathers fused with norm and activation, and with the layer behind them.

A leaf package: it knows torch and triton, and nothing of the compiler that calls it. A feature map is a tensor (..., channels)
whose channels lie side by side: what a channels-last (N, C, H, W) tensor is after `.permute(0, 2, 3, 1)`.

    gather(maps, taps, ...)                               act(norm(map(k)[..., channel(k)])), pooled on the way if asked
    gather_mm(maps, taps, weight, ...)                    the same, and a linear layer or 1x1 convolution over it, in one pass
    block_sparse_conv2d(map, taps, weight, support, ...)  a convolution whose outputs read blocks of their own

and for training

    share(map)                                            a map that several read, its statistics taken once; and for each of these
    trained_gather_mm(shared, taps, weight, ...)          gather_mm, differentiable, statistics of the batch among it
    trained_with_moments(shared, taps, weight, ...)       the same, and the statistics of what it makes, for `share`
    trained_block_sparse_conv2d(maps, taps, ...)          block_sparse_conv2d, differentiable; all made of
    statistics(map)                                       mean and variance of each channel, once for all that read it
    gather_mm_backward(grad, maps, taps, weight, ...)     the gradients of gather_mm, nothing saved but the maps
    block_sparse_conv2d_backward(grad, map, taps, ...)    the gradients of block_sparse_conv2d, of live blocks alone
    centered(grad, map, ...)                              what comes back through a map's statistics, once for all its readers

Each has a `*_reference` in plain torch, which differentiates and runs in float64. On a CPU the functions run the reference, except
where TRITON_INTERPRET=1 was set before torch or triton were imported: there the kernels run in Triton's interpreter.
"""

from swkernels.affine import Norm
from swkernels.block_sparse import Cluster, Support, block_sparse_conv2d, block_sparse_conv2d_reference
from swkernels.block_sparse_backward import (
    BlockSparseGradients,
    block_sparse_conv2d_backward,
    block_sparse_conv2d_backward_reference,
)
from swkernels.gather import gather, gather_reference
from swkernels.gather_mm import gather_mm, gather_mm_reference
from swkernels.gather_mm_backward import Gradients, gather_mm_backward, gather_mm_backward_reference
from swkernels.statistics import centered, centered_reference, statistics, statistics_reference
from swkernels.taps import Taps
from swkernels.trained_block_sparse import trained_block_sparse_conv2d
from swkernels.training import Shared, share, trained_gather_mm, trained_with_moments

__all__ = [
    "BlockSparseGradients",
    "Cluster",
    "Gradients",
    "Norm",
    "Shared",
    "Support",
    "Taps",
    "block_sparse_conv2d",
    "block_sparse_conv2d_backward",
    "block_sparse_conv2d_backward_reference",
    "block_sparse_conv2d_reference",
    "centered",
    "centered_reference",
    "gather",
    "gather_mm",
    "gather_mm_backward",
    "gather_mm_backward_reference",
    "gather_mm_reference",
    "gather_reference",
    "share",
    "statistics",
    "statistics_reference",
    "trained_block_sparse_conv2d",
    "trained_gather_mm",
    "trained_with_moments",
]
