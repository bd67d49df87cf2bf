"""Choose for each gather the form that is predicted to take the least time: as it is, from a slab in plain torch, or by a kernel.

What is chosen is chosen together: a concat goes only when all that read it do without, and a map is put into a slab once for all
that read it there. So each region is priced as a whole, from three starts (everything in one form) and by changing the form of one
concat's readers at a time, until nothing gets cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from swcompile.choices import Choice
from swcompile.lower.pieces import concats_of
from swcompile.lower.rates import Rates
from swcompile.lower.regions import Region, lay_out_regions
from swcompile.lower.sites import Site
from swcompile.trace.shapes import spec_of
from swkernels import Support
from swkernels.taps import AT_ONCE, Taps

FORMS = ("plain", "torch", "triton")
WORTH_IT, WORTH_IT_ELSEWHERE = 0.85, 0.6
"""A region is lowered where that is predicted to take at most this share of the time: predictions are no better than that.

By timings of another device they are worse: DenseNet-121, channels last, was predicted to take .73 of the time, and took 1.03.
"""

Forms = Mapping[Site, str]


@dataclass(frozen=True)
class Chosen:
    """The form of each site, and what was predicted for it."""

    forms: Forms
    choices: tuple[Choice, ...]


def choose(graph: fx.Graph, sites: Sequence[Site], rates: Rates | None, layout: str, worth_it: float = WORTH_IT) -> Chosen:
    """Choose forms for the sites of a graph whose values have their shapes of now; `layout` says where its maps have channels.

    Where nothing is known of a device or dtype, everything is left as it is.
    """
    forms: dict[Site, str] = {}
    predicted: dict[Site, tuple[float, float]] = {}
    for region in lay_out_regions(graph, sites):
        prices = _Prices(region, rates, layout)
        found = _cheapest(region, prices, worth_it)
        forms |= found
        shares, plain = prices.shares(found), prices.shares(dict.fromkeys(region.sites, "plain"))
        predicted |= {site: (plain[site], shares[site]) for site in region.sites}
    return Chosen(forms, tuple(_choice(site, forms[site], *predicted[site]) for site in sites))


def _choice(site: Site, form: str, plain: float, chosen: float) -> Choice:
    known = math.isfinite(plain)
    return Choice(name_of(site), form, plain if known else None, chosen if known else None)


def name_of(site: Site) -> str:
    """Name a site by its layer, or by what its concat is read by."""
    step = site.layer or site.norm
    return str(step.target) if step is not None and step.op == "call_module" else site.last.name


def _cheapest(region: Region, prices: _Prices, worth_it: float = WORTH_IT) -> dict[Site, str]:
    plain = dict.fromkeys(region.sites, "plain")
    if not math.isfinite(prices.total(plain)):
        return plain
    alike = [dict.fromkeys(region.sites, form) for form in FORMS]
    found = [_improved(forms, prices) for forms in alike if math.isfinite(prices.total(forms))]
    best = min(found, key=prices.total)
    return best if prices.total(best) <= worth_it * prices.total(plain) else plain


def _improved(forms: dict[Site, str], prices: _Prices) -> dict[Site, str]:
    """Change the form of one concat's readers at a time, as long as that makes the region cheaper."""
    readers: dict[fx.Node, list[Site]] = {}
    for site in forms:
        readers.setdefault(site.cat, []).append(site)
    now, changed = prices.total(forms), True
    while changed:
        changed = False
        for sites in readers.values():
            for form in FORMS:
                other = forms | dict.fromkeys(sites, form)
                cost = prices.total(other)
                if cost < now:
                    forms, now, changed = other, cost, True
    return forms


class _Prices:
    """What the sites of a region cost in each form."""

    def __init__(self, region: Region, rates: Rates | None, layout: str) -> None:
        spec = spec_of(region.sites[0].cat)
        assert spec is not None, "sites are found among values with shapes"
        self.region, self.axis = region, region.axis
        self.layout = "last" if region.axis == -1 else layout
        self.rates = {} if rates is None else rates.of(spec.dtype)
        self.known: dict[tuple[Any, ...], float] = {}
        cats = {site: set(concats_of(site.cat, region.axis)) for site in region.sites}
        gone = self._gone(set().union(*cats.values()))
        self.needed = {site: {*(cats[site] & gone), *site.steps} for site in region.sites}

    def _gone(self, cats: set[fx.Node]) -> set[fx.Node]:
        """Return the concats that nobody reads any more when all sites are lowered; what stays costs the same in every form."""
        last = {site.last for site in self.region.sites if site.is_bare}
        firsts = {site.steps[0] for site in self.region.sites if site.steps}
        gone: set[fx.Node] = set()
        for cat in sorted(cats, reverse=True):  # those that others are parts of come first
            if cat in last or all(user in firsts or user in gone for user in cat.users):
                gone.add(cat)
        return gone

    def total(self, forms: Forms) -> float:
        """Return the predicted seconds of the region."""
        return sum(self.shares(forms).values())

    def shares(self, forms: Forms) -> dict[Site, float]:
        """Return the predicted seconds of each site, what several need divided among them."""
        costs = {site: self._by(form, site) for site, form in forms.items() if form != "plain"}
        costs |= {site: 0.0 for site, form in forms.items() if form == "plain"}
        for needs in (self._plain(forms), self._puts(forms)):
            readers: dict[tuple[float, fx.Node], list[Site]] = {}
            for site, price, node in needs:
                readers.setdefault((price, node), []).append(site)
            for (price, _), sites in readers.items():
                for site in sites:
                    costs[site] += price / len(sites)
        return costs

    def _plain(self, forms: Forms) -> Iterator[tuple[Site, float, fx.Node]]:
        for site, form in forms.items():
            if form == "plain":
                yield from ((site, self._node(node, site), node) for node in self.needed[site])

    def _puts(self, forms: Forms) -> Iterator[tuple[Site, float, fx.Node]]:
        """Yield what the maps cost that sites read from the slab, by the kernel where one of them does, and what leaves the model.

        Most are made by convolutions that read what another site gave, and so have their channels last whatever the model's layout.
        """
        by_kernel = any(form == "triton" and not reads_apart(site, form) for site, form in forms.items())
        for site, form in forms.items():
            if form != "plain" and not reads_apart(site, form):
                for source in site.sources:
                    yield site, self._price("triton put" if by_kernel else "put last", *self._size(source)), source
            if form != "plain" and self.layout == "first" and any(user.op == "output" for user in site.last.users):
                yield site, self._price("put first", *self._size(site.last)), site.last

    def _node(self, node: fx.Node, site: Site) -> float:
        kinds = {site.norm: "norm", site.out_norm: "norm", site.activation: "activation", site.out_activation: "activation"}
        rows, channels = self._size(node)
        if node is site.layer:
            inputs = self._size(site.cat)[1] * site.kernel_area
            masking = 0.0 if site.support is None else self._price(f"activation {self.layout}", channels, inputs)
            return masking + self._price(f"product {self.layout}", rows, inputs, channels)
        return self._price(f"{kinds.get(node, 'cat')} {self.layout}", rows, channels)

    def _by(self, form: str, site: Site) -> float:
        rows, channels = self._size(site.cat)
        if site.support is not None and site.layer is not None:
            return self._by_clusters(form, site, site.layer, site.support)
        if form == "torch":
            return self._by_torch(site, rows, channels)
        copies = 0.0
        if self.layout == "first" and reads_apart(site, form):
            copies = sum(self._price("put first", *self._size(source)) for source in site.sources)
        if site.layer is None:
            return copies + self._price("triton map", rows, channels)
        return copies + self._price("triton product", rows, channels, self._size(site.layer)[1])

    def _by_torch(self, site: Site, rows: int, channels: int) -> float:
        cost = 0.0
        if site.is_bare or len(Taps.of_flat(self.region.runs(site)).runs) > 1:
            cost += self._price("cat last", rows, channels)
        if site.norm is not None or site.activation is not None:
            cost += self._price("torch map", rows, channels)
        if site.layer is not None:
            outputs = self._size(site.layer)[1]
            cost += self._price("torch product", rows, channels, outputs)
            if site.out_norm is not None:  # goes into the smaller of weight and map
                cost += self._price("torch map", *((outputs, channels) if rows > outputs else (rows, outputs)))
            if site.out_activation is not None:
                cost += self._price("activation last", rows, outputs)
        return cost

    def _by_clusters(self, form: str, site: Site, layer: fx.Node, support: Support) -> float:
        """Return what the products of a layer's clusters take, a convolution counted as a product with as many more channels."""
        (read, channels), (rows, outputs) = self._size(site.cat), self._size(layer)
        clusters = [(one.stop - one.start, sum(stop - start for start, stop in one.reads)) for one in support.clusters]
        if form == "triton":
            share = sum(made * inputs for made, inputs in clusters) / (outputs * channels)
            return self._price("triton product", rows, max(1, round(share * channels * site.kernel_area)), outputs)
        cost = self._price(f"cat {self.layout}", rows, outputs)
        for node, operation in ((site.norm, "norm"), (site.activation, "activation")):
            cost += 0.0 if node is None else self._price(f"{operation} {self.layout}", read, channels)
        if site.norm is not None or site.activation is not None:
            cost += self._price(f"cat {self.layout}", read, channels)
        if site.out_activation is not None:
            cost += self._price(f"activation {self.layout}", rows, outputs)
        for made, inputs in clusters:
            deep = inputs * site.kernel_area
            passes = 1 if site.out_norm is None else 2  # over the weights
            cost += self._price(f"cat {self.layout}", read, inputs) + passes * self._price(f"cat {self.layout}", made, deep)
            cost += self._price(f"product {self.layout}", rows, deep, made)
        return cost

    def _size(self, node: fx.Node) -> tuple[int, int]:
        """Return rows and channels of a value."""
        spec = spec_of(node)
        assert spec is not None, "sites are found among values with shapes"
        channels = spec.shape[self.axis]
        return math.prod(spec.shape) // max(channels, 1), channels

    def _price(self, operation: str, rows: int, channels: int, outputs: int = 0) -> float:
        """Return the predicted seconds of an operation; infinite where nothing is known of it, or it has no size."""
        key = operation, rows, channels, outputs
        if key not in self.known:
            timings = self.rates.get(operation)
            self.known[key] = timings.seconds(rows, channels, outputs) if timings and rows and channels else math.inf
        return self.known[key]


def reads_apart(site: Site, form: str) -> bool:
    """Say whether a site reads its maps where they were made, rather than from a slab.

    Kernels do where the maps are few, plain torch where it takes a layer's clusters one by one.
    """
    return form == ("triton" if site.support is None else "torch") and (form == "torch" or len(site.sources) <= AT_ONCE)
