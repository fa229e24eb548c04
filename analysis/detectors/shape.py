"""Say what a detector is, and what one kind of finding declares of itself.

A detector is a frozen dataclass of thresholds: it is asked about a run and keeps nothing. What the
rest of the diagnosis has to know of its findings (what to do about them, which signals they stand
for, which replay tests them) stands in their `Kind`, beside the detector. A new one is a file here
and a line in `analysis.detectors.table`.

Example:
    >>> CaptureRule()(open_run("runs/voting-shared"))
    [Finding(kind='capture', subject='generator', ...)]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from analysis.cliff.accuracy import AccuracySeries, outcome_of
from analysis.cliff.cliff import FallTest
from analysis.cliff.fall import Fall
from analysis.explain.vocabulary import Action
from analysis.findings import Finding, NotJudged
from gradlab.store.run import Run

Replay = Literal["", "entropy", "clip", "cap share", "anchor"]
"""The one change that takes away what a suspect is accused of; '' where no single one does."""
Advice = tuple[tuple[Action, str], ...]
"""What to do and why, the first thing first; '{role}' and '{whose}' stand for the subject."""


@dataclass(frozen=True)
class Kind:
    """One kind of finding: everything that is known of it before any run is seen."""

    name: str
    needs: str
    """What has to be recorded: without it, silence about this kind says nothing."""
    advice: Advice = ()
    advice_if_cut: Advice = ()
    """The same for a role whose responses end in the token limit; empty: no other."""
    signals: tuple[str, ...] = ()
    """Kinds of signal that it stands for as a suspect, its head first; empty: it is no suspect."""
    dated_by: tuple[str, ...] | None = None
    """Those that say when it began; None: the head alone."""
    link: Literal["of", "by"] = "of"
    """'capture by generator'."""
    is_of_policy: bool = False
    """Speaks for its signals in every role of the policy, not in its subject alone."""
    has_option: bool = True
    """False: it sits in code, and a replay with another option says nothing about it."""
    replay: Replay = ""
    beside_fall: str = ""
    """A sentence for a fall that it goes with, and of which it says more than any order in time."""
    describes: bool = False
    """Describes a run rather than what went wrong in it: its advice comes last."""
    raises_alarm: bool = True
    """Whether it is a reason to step in while the run trains."""
    told_by: tuple[str, ...] = ()
    """Kinds that say it already, of the same subject."""
    family_share: float = 0.0
    """Of the 5 % for all tests of a run, said beforehand; 0: shared with all the others."""
    is_own_test: bool = False
    """At its own 5 %, outside of the family."""
    term: tuple[str, str] | None = None
    """Pattern of its uses in a text, and what it means, for the page's glossary."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Kinds of signal that say when it began."""
        return self.signals[:1] if self.dated_by is None else self.dated_by


@dataclass(frozen=True)
class Context:
    """What a detector is shown: a run, what it is judged by, and whether that fell."""

    run: Run
    test: FallTest = field(default_factory=FallTest)
    given: tuple[AccuracySeries, Fall] | None = None
    """Outcome and fall, where they are known; else they are measured when they are asked for."""

    @cached_property
    def series(self) -> AccuracySeries:
        return self.given[0] if self.given else outcome_of(self.run)

    @cached_property
    def fall(self) -> Fall:
        return self.given[1] if self.given else self.test.measure(self.series)


@dataclass(frozen=True)
class Judged:
    """What one detector says of a run."""

    findings: tuple[Finding, ...] = ()
    not_judged: tuple[NotJudged, ...] = ()
    """What it would need."""
    observed: tuple[NotJudged, ...] = ()
    """What it saw and does not stand for."""


@dataclass(frozen=True)
class Detector:
    """What all detectors have in common; subclasses add thresholds, and `judge`."""

    kinds: tuple[Kind, ...] = ()
    """Of finding; hypotheses that are counted are of the first."""

    def __call__(self, run: Run) -> list[Finding]:
        """The findings alone, not yet corrected for what else is tested in the run."""
        return list(self.judge(Context(run)).findings)

    def judge(self, context: Context) -> Judged:
        raise NotImplementedError

    def num_tested(self, run: Run) -> int:
        """Hypotheses with a p-value, those without a finding included; 0: nothing is tested."""
        return 0

    def thresholds(self) -> dict[str, float]:
        """Those that a reader of the diagnosis should see, by name."""
        return {}
