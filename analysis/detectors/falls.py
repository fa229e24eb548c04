"""Say that accuracy fell, as a finding beside the others, and where the loss sits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from analysis.cliff.fall_words import findings_of
from analysis.cliff.where_lost import located
from analysis.detectors.shape import Context, Detector, Judged, Kind

NEEDS = "held-out evaluations, two at least; training accuracy or reward in their place"
LONG_STEPS = "long steps fell a run whatever else does"

CLIFF = Kind("cliff", NEEDS, (("lower rate", LONG_STEPS),), is_own_test=True)
FALL = Kind("fall", NEEDS, (("lower rate", LONG_STEPS),), is_own_test=True)
DECAY = Kind(
    "decay",
    NEEDS,
    (("lower rate", "more training of this kind costs accuracy"),),
    is_own_test=True,
)
SWINGS = Kind(
    "swings", NEEDS, (("lower rate", "long steps make accuracy swing"),), is_own_test=True
)
LAST_LOW = Kind(
    "last evaluation low",
    NEEDS,
    (("evaluate more", "one evaluation says little"),),
    is_own_test=True,
)


@dataclass(frozen=True)
class FallRule(Detector):
    """Puts into a finding what the test of the outcome said; its thresholds are that test's."""

    kinds: tuple[Kind, ...] = (CLIFF, FALL, DECAY, SWINGS, LAST_LOW)

    def judge(self, context: Context) -> Judged:
        """At most one finding, on the run."""
        where = located(context.run, context.series, context.fall)
        return Judged(
            tuple(
                replace(finding, evidence=(*where, *finding.evidence))
                for finding in findings_of(context.fall)
            )
        )
