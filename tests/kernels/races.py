"""Watch every access of a kernel in Triton's interpreter: what lies outside its tensors, and what two programs do to one place.

The interpreter runs programs one after another and reads what lies behind a tensor without a word, so neither shows in its results.
What lies outside is masked, so that a wrong kernel is told of and not suffered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from swkernels import launch

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
Accesses = tuple[Places, Places]
"""Addresses, and the number of the program at each."""


class Watch:
    """What was found, over all launches."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.begin(())

    def begin(self, tensors: tuple[Tensor, ...]) -> None:
        """Forget the accesses of the last launch; from now on the elements of these tensors may be touched."""
        self._allowed = np.unique(np.concatenate([np.zeros(0, np.int64), *map(_addresses, tensors)]))
        self._programs: dict[Any, int] = {}
        self._read: list[Accesses] = []
        self._written: list[Accesses] = []

    def read(self, pointers: Places, mask: Mask, program: Any) -> Mask:
        """Note a load, and return the mask without what lies outside."""
        mask = self._inside(pointers, mask, "load")
        self._read.append(self._noted(pointers[mask], program))
        return mask

    def write(self, pointers: Places, mask: Mask, program: Any) -> Mask:
        """Note a store, and return the mask without what lies outside: it would destroy what is there."""
        mask = self._inside(pointers, mask, "store")
        places, _ = noted = self._noted(pointers[mask], program)
        if len(places) < mask.sum():
            self.faults.append("one store writes a place twice")
        self._written.append(noted)
        return mask

    def _inside(self, pointers: Places, mask: Mask, what: str) -> Mask:
        inside = np.isin(pointers, self._allowed)
        outside = int((mask & ~inside).sum())
        if outside:
            self.faults.append(f"{what} outside the tensors, at {outside} places")
        return mask & inside

    def _noted(self, pointers: Places, program: Any) -> Accesses:
        places = np.unique(pointers)
        return places, np.full(len(places), self._programs.setdefault(program, len(self._programs)))

    def end(self) -> None:
        """Compare what the programs wrote with each other, and with what they read."""
        places, writers = _joined(self._written)
        order = np.argsort(places, kind="stable")
        places, writers = places[order], writers[order]
        if ((places[1:] == places[:-1]) & (writers[1:] != writers[:-1])).any():
            self.faults.append("two programs write the same place")
        read, readers = _joined(self._read)
        found = np.searchsorted(places, read).clip(max=max(len(places) - 1, 0))
        if len(places) and ((places[found] == read) & (writers[found] != readers)).any():
            self.faults.append("a program reads what another writes")


def _joined(accesses: list[Accesses]) -> Accesses:
    """Join accesses into one list of places and one of the programs that they belong to."""
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *(places for places, _ in accesses)]), np.concatenate([none, *(who for _, who in accesses)])


def _addresses(tensor: Tensor) -> Places:
    """Return the address of every element of a tensor, and of none between them."""
    places = np.zeros(1, np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = (places[:, None] + np.arange(size, dtype=np.int64) * stride).ravel()
    return tensor.data_ptr() + places * tensor.element_size()


@contextmanager
def watched(*also: Tensor) -> Iterator[Watch]:
    """Watch the launches inside; what a kernel may touch are the tensors of its launch, and `also`."""
    watch = Watch()
    run, load, store = launch.run, InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def running(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
        watch.begin(tuple(argument for argument in arguments if isinstance(argument, Tensor)) + also)
        run(kernel, programs, *arguments, **options)
        watch.end()

    def checked(note: Callable[..., Mask], builder: Any, pointers: Any, mask: Any) -> Any:
        live = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        return TensorHandle(note(pointers.data.astype(np.int64), live, builder.grid_idx), mask.dtype)

    def loading(builder: Any, pointers: Any, mask: Any, *more: Any, **options: Any) -> Any:
        return load(builder, pointers, checked(watch.read, builder, pointers, mask), *more, **options)

    def storing(builder: Any, pointers: Any, value: Any, mask: Any, *more: Any, **options: Any) -> Any:
        return store(builder, pointers, value, checked(watch.write, builder, pointers, mask), *more, **options)

    with (
        mock.patch.object(launch, "run", running),
        mock.patch.object(InterpreterBuilder, "create_masked_load", loading),
        mock.patch.object(InterpreterBuilder, "create_masked_store", storing),
    ):
        yield watch
