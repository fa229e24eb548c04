"""From run stores to the figures of the paper."""

from typing import TYPE_CHECKING

from gradlab.lazily import lazily
from gradlab.shadowed import check_ours

__all__ = ["make_figures"]

if TYPE_CHECKING:
    from figures.make import make_figures
else:
    __getattr__, __dir__ = lazily(__name__, {"make_figures": "figures.make"})

check_ours("analysis")  # figures are drawn from what it finds
