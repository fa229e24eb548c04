"""From a run store to a diagnosis: detectors, causes and reports."""

from typing import TYPE_CHECKING

from gradlab.lazily import lazily

__all__ = ["diagnose"]

if TYPE_CHECKING:
    from analysis.diagnosis import diagnose
else:
    __getattr__, __dir__ = lazily(__name__, {"diagnose": "analysis.diagnosis"})
