"""Register hooks on a model that copies of the model do not inherit.

A reference model is often a deep copy of the trained one. With ordinary hooks it would carry along
the probe, its buffers and its store; saving the whole model would fail.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn


class Hook(partial[Any]):
    """A hook that does nothing on copies and pickles of what it is registered on."""

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (ignore,)


class Forward(partial[Any]):
    """A forward in place of a linear layer's, which has its own again in copies and pickles.

    The module is the last of the arguments that are given beforehand.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (nn.Linear.forward, self.args[-1])


def ignore(*args: Any, **kwargs: Any) -> None:
    """Any hook that leaves everything as it is."""
