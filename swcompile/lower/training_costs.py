"""Choose which gathers are lowered in train mode: those where a step through them, forward and backward, is predicted to take less.

All in one form, the one that saves most, and gathers that share maps together. Gathers without a norm, and layers that read in
clusters, have not been timed, and are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import fx

from swcompile.choices import Choice
from swcompile.lower.costs import WORTH_IT, Chosen, name_of
from swcompile.lower.rates import Rates
from swcompile.lower.regions import Region, lay_out_regions
from swcompile.lower.sites import Site
from swcompile.trace.shapes import spec_of

FORMS = ("torch", "triton")

Prices = Mapping[Site, float]


def choose_training(graph: fx.Graph, sites: Sequence[Site], rates: Rates | None, layout: str, worth_it: float = WORTH_IT) -> Chosen:
    """Choose a form for each site of a train-mode graph whose values have their shapes of now; `layout` is as in `choose`."""
    timed = [site for site in sites if site.norm is not None and site.support is None]
    regions = [(region, _plain(region, rates, layout)) for region in lay_out_regions(graph, timed)]
    options = []
    for form in FORMS:
        found: dict[Site, tuple[str, float]] = {}
        for region, plain in regions:
            prices = _lowered(region, form, rates, layout)
            pays = sum(prices.values()) <= worth_it * sum(plain.values()) < math.inf
            found |= {site: (form, prices[site]) if pays else ("plain", plain[site]) for site in region.sites}
        options.append(found)
    chosen = min(options, key=lambda found: sum(seconds for _, seconds in found.values() if seconds < math.inf))
    before = {site: seconds for _, plain in regions for site, seconds in plain.items()}
    forms = {site: chosen[site][0] if site in chosen else "plain" for site in sites}
    choices = (_choice(site, *chosen[site], before[site]) if site in chosen else Choice(name_of(site), "plain") for site in sites)
    return Chosen(forms, tuple(choices))


def _choice(site: Site, form: str, seconds: float, before: float) -> Choice:
    return Choice(name_of(site), form, before, seconds) if before < math.inf else Choice(name_of(site), form)


def _plain(region: Region, rates: Rates | None, layout: str) -> Prices:
    """Return what each site takes as it is."""
    layout = "last" if region.axis == -1 else layout
    return {site: _price(rates, f"trained plain {_kind(site)} {layout}", site.cat, site) for site in region.sites}


def _lowered(region: Region, form: str, rates: Rates | None, layout: str) -> Prices:
    """Return what each site takes in a form; what bringing a map to its readers takes is divided among them."""
    layout = "last" if region.axis == -1 else layout
    reads = "last" if form == "triton" else layout
    prices = {site: _price(rates, f"trained {form} {_kind(site)} {reads}", site.cat, site) for site in region.sites}
    for source in region.maps:
        readers = [site for site in region.sites if source in site.sources]
        for site in readers:
            prices[site] += _price(rates, f"shared {form} {layout}", source, site) / len(readers)
    return prices


def _kind(site: Site) -> str:
    return "map" if site.layer is None else "product"


def _price(rates: Rates | None, operation: str, read: fx.Node, site: Site) -> float:
    """Return the predicted seconds of an operation over a value; infinite where nothing is known of it."""
    spec = spec_of(read)
    assert spec is not None, "sites are found among values with shapes"
    timings = None if rates is None else rates.of(spec.dtype).get(operation)
    channels = spec.shape[site.axis]
    if timings is None or not math.prod(spec.shape):
        return math.inf
    made = None if site.layer is None or operation.startswith("shared") else spec_of(site.layer)
    return timings.seconds(math.prod(spec.shape) // channels, channels, 0 if made is None else made.shape[site.axis])
