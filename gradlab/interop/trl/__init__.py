"""Attach the probe to TRL's trainer."""

from typing import TYPE_CHECKING

from gradlab.lazily import lazily

__all__ = ["watch"]

if TYPE_CHECKING:
    from gradlab.interop.trl.grpo import watch
else:
    __getattr__, __dir__ = lazily(__name__, {"watch": "gradlab.interop.trl.grpo"})
