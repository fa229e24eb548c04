"""Act on alarms while a run trains: tell, save, slow down or stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradlab.alarms import Alarm, Watch, append_alarms
from gradlab.run_directory import STORE
from trainers.config import TrainConfig
from trainers.policies import Policy, TrainingError
from trainers.ranks.lifeline import RankFailed
from trainers.ranks.peers import Agreed
from trainers.watch.progress import Progress

SLOWER = 0.3
"""What learning rates are multiplied by under --alarm slow."""


def check_watch(config: TrainConfig, watch: Watch | None) -> None:
    """Raise ValueError for alarms that nobody would raise."""
    if config.alarm != "off" and watch is None:
        raise ValueError(
            f"--alarm {config.alarm} needs something that judges the run: "
            "train(config, watch=analysis.online.Online())"
        )


class AlarmStop(Agreed, TrainingError):
    """An alarm ended the run, as it was asked to."""


class Lookout:
    """Asks a watch after every evaluation and does what the configuration says about alarms."""

    def __init__(
        self,
        config: TrainConfig,
        policies: Mapping[str, Policy],
        progress: Progress,
        watch: Watch | None,
        *,
        keeps: bool = True,
    ) -> None:
        """`keeps`: whether alarms go into the run directory."""
        check_watch(config, watch)
        self._keeps = keeps
        self.alarms: Sequence[Alarm] = ()
        """Raised at the last look."""
        self._config = config
        self._policies = policies
        self._progress = progress
        self._watch = watch

    def look(self, step: int) -> None:
        """Ask, tell, and slow down if that was asked for."""
        self.alarms = ()
        if self._config.alarm == "off" or self._watch is None:
            return
        try:
            self.alarms = self._watch(self._config.out / STORE, step)
        except RankFailed:
            raise
        except Exception as error:  # who judges a run must not end it
            self._progress.note(
                f"no look for alarms at step {step}: {type(error).__name__}: {error}"
            )
        if not self.alarms:
            return
        if self._keeps:
            append_alarms(self._config.out, self.alarms)
        for alarm in self.alarms:
            self._progress.note(f"ALARM at step {step}: {alarm.message}")
        if self._config.alarm == "slow" and not self._is_slow():
            for policy in self._policies.values():
                policy.rate.scale(SLOWER)
            self._progress.note(f"learning rates multiplied by {SLOWER}")

    @property
    def wants_checkpoint(self) -> bool:
        return bool(self.alarms) and self._config.alarm != "tell"

    def stop_if_asked(self, step: int) -> None:
        """Raise TrainingError under --alarm stop; the checkpoint is written by then."""
        alarms, self.alarms = self.alarms, ()
        if alarms and self._config.alarm == "stop":
            out = self._config.out
            raise AlarmStop(
                f"stopped after step {step}: {alarms[0].message} Look: gradlab diagnose {out}. Go "
                f"on all the same: gradlab train --resume --out {out}"
            )

    def _is_slow(self) -> bool:
        """Also after a resume: checkpoints hold the rates."""
        first = next(iter(self._policies.values()))
        return first.rate.base < self._config.learning_rate_of(first.name)
