"""Evaluating with averaged weights: parameters and averages change places, and change back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from rmsprop import averaging
from rmsprop.torch.shards import local
from rmsprop.torch.state import real
from rmsprop.torch.stepping import Stepping


class Averaging(Stepping):
    """What an optimizer with `averaging` can do beside stepping. Not to be used on its own."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the parameters hold their averages; then again, bit for bit, what they held before.

        Parameters of groups without `averaging`, and those that have not been stepped, stay as they are. The others
        change in place, one after the other. That takes the memory of one parameter, or, where average and parameter
        differ in dtype (bfloat16, float16), of all of them. What is written to a parameter within the block is lost, or
        becomes its average.

        Raises:
            ValueError: no group has `averaging`.
            RuntimeError: within another such block. Within this one, so do `step`, `state_dict`, `load_state_dict`,
                pickling and copying the optimizer, before anything is written.

        Example:
            >>> import torch, rmsprop.torch
            >>> layer = torch.nn.Linear(3, 1)
            >>> optimizer = rmsprop.torch.RMSprop(layer.parameters(), lr=0.01, averaging=True)
            >>> for _ in range(10):
            ...     optimizer.zero_grad()
            ...     layer(torch.ones(2, 3)).square().mean().backward()
            ...     optimizer.step()
            >>> with optimizer.averaged():
            ...     loss = layer(torch.ones(2, 3)).square().mean()
        """
        if all(averaging.gamma_of(group["averaging"]) is None for group in self.param_groups):
            raise ValueError("averaged: no group averages its weights; expected averaging=True in one")
        self.flush()
        held: list[tuple[Tensor, Tensor, Tensor | None]] = []
        with self._own_turn("averaged"):
            self._expect_own_weights("averaged")
            self._is_averaged = True
        try:
            with averaging.uninterrupted():
                for p, average in self._averages():
                    held.append((p, average, _take(p, average)))
            yield
        finally:
            with averaging.uninterrupted(), self._turn:
                for row in held:
                    _give_back(*row)
                self._is_averaged = False

    def _averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The parameters that have been averaged, with their averages."""
        for group in self.param_groups:
            for p in group["params"] if averaging.gamma_of(group["averaging"]) is not None else ():
                state = self.state.get(p, {})
                if averaging.SLOT in state and float(state["step"]) > 0:
                    yield p, state[averaging.SLOT]


@torch.no_grad()
def _take(p: Any, average: Any) -> Tensor | None:
    """Puts an average into its parameter; returns what that held, or None where it is in the average's place."""
    here, there = real(local(p).detach()), real(local(average).detach())
    kept = here.clone()
    here.copy_(there)
    if same := here.dtype == there.dtype:
        there.copy_(kept)
    increment_version([p])
    return None if same else kept


@torch.no_grad()
def _give_back(p: Any, average: Any, kept: Tensor | None) -> None:
    if kept is None:
        _take(p, average)
    else:
        real(local(p).detach()).copy_(kept)
        increment_version([p])
