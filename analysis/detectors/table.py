"""List the detectors, in the order in which a diagnosis tells what they find.

Whether the measurement can be trusted comes first, then the fall, then everything else. A new
detector is a line here; what the rest of the diagnosis has to know of it stands in its `Kind`.
"""

from __future__ import annotations

from analysis.cliff.same_problems import ChangedSetRule
from analysis.detectors.amplification import AmplificationTest
from analysis.detectors.breakdown import BreakdownRule
from analysis.detectors.detached import DetachedRule
from analysis.detectors.falls import FallRule
from analysis.detectors.forms import FormRule, WorkRule
from analysis.detectors.frozen import StillRule
from analysis.detectors.hacking import HackingRule
from analysis.detectors.levels import LEVEL_RULES
from analysis.detectors.measurement import MeasurementRule
from analysis.detectors.role_capture import CaptureRule
from analysis.detectors.shape import Detector, Kind
from analysis.detectors.silent_agent import SilentAgentRule
from analysis.detectors.spikes import SpikeRule
from analysis.detectors.states import CutRule, NoSpreadRule, NotFiniteRule

DETECTORS: tuple[Detector, ...] = (
    NotFiniteRule(),
    MeasurementRule(),
    StillRule(),
    SilentAgentRule(),
    CutRule(),
    NoSpreadRule(),
    FallRule(),
    BreakdownRule(),
    CaptureRule(),
    AmplificationTest(),
    SpikeRule(),
    *LEVEL_RULES,
    HackingRule(),
    FormRule(),
    WorkRule(),
    DetachedRule(),
    ChangedSetRule(),
)

KINDS: dict[str, Kind] = {kind.name: kind for rule in DETECTORS for kind in rule.kinds}
"""Name -> what is known of that kind of finding before any run is seen."""
