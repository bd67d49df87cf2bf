"""Lower a module for one kind of call after the other: device, dtypes, layout and rough sizes decide what pays."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from swcompile.choices import Choice, Choices
from swcompile.errors import SwnetError
from swcompile.lower.costs import WORTH_IT, WORTH_IT_ELSEWHERE, Chosen, choose, name_of
from swcompile.lower.emit import lowered, shown_weight
from swcompile.lower.emit_training import as_trained, trained
from swcompile.lower.rates import Rates, device_name, known
from swcompile.lower.run import is_channels_last
from swcompile.lower.sites import Site, find_sites, left_alone
from swcompile.lower.training_costs import choose_training
from swcompile.modules import Lowered, RewiredModule
from swcompile.trace import Example, shaped
from swcompile.trace.shapes import Autocast, Spec, describe_inputs, shapes_of

BACKENDS = ("auto", "torch", "triton")


@dataclass(frozen=True)
class Lowering:
    """How a module is lowered: by which backend, for which example inputs first, and whether train mode is, too.

    "torch" and "triton" lower every gather that can be, alike for all calls; "auto" chooses by the rates of the device. With
    `only_gpus` a module runs as it is while its weights are on a CPU.
    """

    backend: str
    example: Example
    training: bool = False
    only_gpus: bool = False

    def is_for(self, module: nn.Module) -> bool:
        """Say whether a module is to be lowered where it is."""
        weight = _weight(module)
        return not self.only_gpus or (weight is not None and weight.device.type == "cuda")

    def key(self, module: nn.Module, arguments: Sequence[Any], autocast: Autocast | None) -> Hashable | None:
        """Return what tells kinds of calls apart: calls of one key run one program. Sizes count by their power of two.

        None for calls that none is made for: with arguments that are no plain tensors, or are empty.
        """
        if not all(_is_plain(value) for value in arguments):
            return None
        if self.backend != "auto":
            return (autocast, *((value.dim(), value.dtype) for value in arguments))
        kinds = ((value.dtype, *((size - 1).bit_length() for size in value.shape)) for value in arguments)
        weight = _weight(module)
        threads = torch.get_num_threads() if weight is None or weight.device.type == "cpu" else None  # timings on CPUs are by them
        place = None if weight is None else (weight.device, weight.dtype)
        return (autocast, place, threads, _layout(weight, arguments), *kinds)

    def example_of(self, module: nn.Module) -> Example:
        """Return the example inputs as a module takes them that may have been converted since."""
        return _as(_weight(module), self.example)

    def example_key(self, module: nn.Module, autocast: Autocast | None) -> Hashable | None:
        """Return the key of the example inputs."""
        if not all(isinstance(value, Spec) for value in self.example):
            return None
        with FakeTensorMode():
            return self.key(module, [value.fake() for value in self.example_of(module)], autocast)

    def program(
        self, module: RewiredModule, arguments: Sequence[Any] | None, autocast: Autocast | None, *, in_training: bool = False
    ) -> Lowered:
        """Lower a mode of a module for its arguments, or the example inputs where they are None, under autocast or not (None).

        Arguments that the model cannot take are not lowered for: the model itself then says what is wrong.
        """
        weight = _weight(module)
        graph, shell = copy.deepcopy(module.graphs[0 if in_training else -1]), module.shell()
        try:
            example = self.example_of(module) if arguments is None else describe_inputs(tuple(arguments))
            with _disable_current_modes():  # what counts or records the call shall not see this
                shaped(graph, shell, example, autocast)
                sites = find_sites(graph, shell)
        except SwnetError:
            return Lowered(None, (), None)
        device = torch.device("cpu") if weight is None else weight.device
        call = f"{'training, ' if in_training else ''}{shapes_of(example)} on {device_name(device)}{_under(autocast)}"
        if not sites:
            why = left_alone(graph, shell, graph) or "no layer reads a concat of feature maps along its channels"
            return Lowered(None, (), Choices(call, why, ()))
        parts = {site: as_trained(site, shell) if in_training else (site,) for site in sites}
        every = [part for found in parts.values() for part in found]
        chosen, why = self._chosen(graph, every, weight, arguments, in_training)
        by_part = dict(zip(every, chosen.choices, strict=True))
        choices = {site: _joined(site, [by_part[part] for part in found]) for site, found in parts.items()}
        forms = {site: choice.form for site, choice in choices.items()}
        if in_training:
            taken = [site for site, form in forms.items() if form != "plain"]
            made, bypassed = trained(graph, shell, taken, by_kernel="triton" in forms.values())
        else:
            made, bypassed = lowered(graph, shell, forms)
        fault = None if made is None else _fault(made, shell, example, autocast)
        if fault is None and made is not None and self.backend == "triton" and arguments is None and not in_training:
            fault = left_alone(graph, shell, made)  # which swnet.lower raises; a call of another kind runs what it can
        if fault is not None:
            return Lowered(None, (), Choices(call, fault, tuple(Choice(choice.layer, "plain") for choice in choices.values())))
        return Lowered(made, bypassed, Choices(call, why, tuple(choices.values())))

    def _chosen(
        self, graph: fx.Graph, sites: Sequence[Site], weight: Tensor | None, arguments: Sequence[Any] | None, in_training: bool
    ) -> tuple[Chosen, str]:
        """Return the form of each site, and by what it was chosen."""
        if self.backend != "auto":
            return Chosen(
                dict.fromkeys(sites, self.backend), tuple(Choice(name_of(site), self.backend) for site in sites)
            ), "as asked"
        device = torch.device("cpu") if weight is None else weight.device
        rates, unread = _known(device)
        layout = _layout(weight, arguments or ())
        is_own = rates is None or rates.device == device_name(device)
        how = choose_training if in_training else choose
        chosen = how(graph, sites, rates, layout, WORTH_IT if is_own else WORTH_IT_ELSEWHERE)
        of = "training in " if in_training else ""
        return chosen, unread or _why(chosen, None if rates is None else _told(rates, device), f"channels {layout}", of)

    def is_like_example(self, module: nn.Module, arguments: Sequence[Any]) -> bool:
        """Say whether arguments are tensors of the ranks of the example, and of its dtypes or, both floating, of the weights'."""
        weight = _weight(module)
        if len(arguments) != len(self.example):
            return False
        for value, spec in zip(arguments, self.example, strict=True):
            if not isinstance(value, Tensor) or not isinstance(spec, Spec) or value.dim() != len(spec.shape):
                return False
            is_weights = weight is not None and spec.dtype.is_floating_point and value.dtype == weight.dtype
            if value.dtype != spec.dtype and not is_weights:
                return False
        return True

    def takes_in_training(self, module: nn.Module, arguments: Sequence[Any]) -> bool:
        """Say whether the program for train mode was made for such arguments."""
        return all(_is_plain(value) for value in arguments) and self.is_like_example(module, arguments)


def _joined(site: Site, parts: Sequence[Choice]) -> Choice:
    """Return what was chosen for a site of its parts: plain where one of them is, or there is none."""
    forms = {part.form for part in parts} or {"plain"}
    form = "plain" if "plain" in forms else forms.pop()
    before, after = ([part.plain_seconds for part in parts], [part.seconds for part in parts])
    return Choice(name_of(site), form, _sum(before), _sum(before if form == "plain" else after))


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return sum(known) if known and len(known) == len(seconds) else None


def _fault(graph: fx.Graph, shell: nn.Module, example: Example, autocast: Autocast | None) -> str | None:
    """Say why a lowered graph does not run, as where something far behind a site goes by the strides of what it made; or None."""
    try:
        with _disable_current_modes():
            shaped(copy.deepcopy(graph), shell, example, autocast)
    except SwnetError as error:
        return f"lowered, it does not run: {error}"
    return None


def _under(autocast: Autocast | None) -> str:
    return "" if autocast is None else f" under autocast to {str(autocast[1]).removeprefix('torch.')}"


def _as(weight: Tensor | None, example: Example) -> Example:
    """Return example inputs as a model takes them that was converted since: floating ones in the dtype of its weights."""
    if weight is None or not weight.is_floating_point():
        return example
    return tuple(
        Spec(value.shape, weight.dtype) if isinstance(value, Spec) and value.dtype.is_floating_point else value for value in example
    )


def _known(device: torch.device) -> tuple[Rates | None, str]:
    """Return what is known of a device, or why it cannot be read: a call shall not fail for that."""
    try:
        return known(device), ""
    except SwnetError as error:
        return None, str(error)


def _told(rates: Rates, device: torch.device) -> str:
    """Say what a table was measured on, and that this is another device where it is."""
    other = "" if rates.device == device_name(device) else f"another {'GPU' if device.type == 'cuda' else 'CPU'}, "
    return f"{other}{rates.device}, torch {rates.versions.get('torch')}"


def _is_plain(value: Any) -> bool:
    """Say whether a value is a tensor with sizes that are numbers, none of them 0."""
    if not isinstance(value, Tensor) or value.is_nested:
        return False
    return all(type(size) is int and size > 0 for size in value.shape)


def _why(chosen: Chosen, rates: str | None, layout: str, of: str) -> str:
    """Say what the choice goes by."""
    if rates is None:
        return "nothing is known of this device: run `swcompile bench --calibrate`"
    predicted = [(one.plain_seconds, one.seconds) for one in chosen.choices if one.plain_seconds is not None]
    if not predicted:
        return f"the timings of {rates} hold nothing for {of}this dtype"
    before, after = (1000 * sum(float(side or 0) for side in sides) for sides in zip(*predicted, strict=True))
    return f"{layout}, {before:.3g} ms in them before, {after:.3g} ms now, as predicted from timings of {rates}"


def _weight(module: nn.Module) -> Tensor | None:
    """Return the first weight whose layout says something, else any."""
    shown = shown_weight(module)
    return next(module.parameters(), None) if shown is None else shown[1]


def _layout(weight: Tensor | None, arguments: Sequence[Any]) -> str:
    """Say whether maps will have their channels "first" or "last": torch's convolutions go by their input and weight."""
    given = [value for value in (weight, *arguments) if isinstance(value, Tensor) and value.dim() == 4]
    return "last" if any(is_channels_last(value) for value in given) else "first"
