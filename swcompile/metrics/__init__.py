"""Measures of a network's topology: its channel graph, clustering, path lengths and what the forward pass sees."""

from swcompile.metrics.channels import ChannelGraph, channel_graph
from swcompile.metrics.figures import Figures, measure
from swcompile.metrics.sampling import Interval, Intervals

__all__ = ["ChannelGraph", "Figures", "Interval", "Intervals", "channel_graph", "measure"]
