"""Sample with engines: publish every version of a policy to them, prove it, and ask them.

A version of a policy is an adapter under a name of its own, such as `generator@17-…`: results of
weights that change under one name come out of the cache of those before. What went before is
unloaded, and its files deleted, when the new version has been proven.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradlab.workflows import Chat
from trainers.engines.canary import Gap, canary, own_rounding
from trainers.engines.engine import Engine, EngineLost, EngineRefused, Request
from trainers.engines.export import write_adapter
from trainers.engines.settings import EngineSettings
from trainers.models.language import LanguageModel
from trainers.models.sampler import Sample, Speaker, Wave
from trainers.policies import TrainingError
from trainers.prompts.chat import Prompts

ATTEMPTS = 3
"""How often a wave is asked: engines are brought back and given all adapters anew in between."""


@dataclass
class EngineSampler:
    """A sampler whose responses come from engines that hold copies of the weights."""

    language: LanguageModel
    """The trainer's model, which the copies are proven against."""
    engines: Sequence[Engine]
    settings: EngineSettings
    directory: Path
    """Where adapters are written for the engines; this run's alone."""
    mark: str
    """In the names of this run's adapters, and of no other's."""
    speakers: Sequence[Speaker]
    """Everybody who speaks: what is drawn as they draw is proven."""
    chats: Sequence[Chat]
    """Whose answers prove it."""
    seconds: float
    """How long an engine has to come back."""
    gaps: dict[tuple[str, str], Gap] = field(default_factory=dict, init=False)
    """Engine and policy -> what its last proof measured."""
    _versions: dict[str, int] = field(default_factory=dict, init=False)
    """Policy -> version of its weights."""
    _proven: dict[tuple[int, str], tuple[str, int]] = field(default_factory=dict, init=False)
    """Engine and policy -> adapter that answers, and its version; '' for the base model."""
    _begun: set[int] = field(default_factory=set, init=False)
    """Engines that hold nothing unknown."""
    _rounding: Gap | None = field(default=None, init=False)
    """Of the model itself, measured once."""
    _is_asleep: bool = field(default=False, init=False)

    @property
    def prompts(self) -> Prompts:
        return self.language.prompts

    @property
    def max_prompt_tokens(self) -> int:
        return self.language.max_prompt_tokens

    def encode(self, speaker: Speaker, chat: Chat) -> tuple[int, ...]:
        return self.language.encode(chat)

    def decode(self, speaker: Speaker, ids: Sequence[int], *, keep_special: bool = False) -> str:
        return self.language.decode(ids, keep_special=keep_special)

    def ask(
        self,
        wave: Wave,
        key: Sequence[int],
        rows: Mapping[Speaker, Sequence[Sequence[int]]] | None = None,
    ) -> dict[Speaker, list[Sample]]:
        """Ask the engines; a wave that fails is asked again, with the same seeds.

        Raises TrainingError where that does not help, and where an engine does not use the
        weights that are trained.
        """
        for attempt in range(ATTEMPTS):
            try:
                if attempt:
                    self._recover()
                self._wake()
                self._bring_up_to_date()
                return self._draw(wave, key, rows)
            except EngineRefused as error:
                raise TrainingError(f"{error}. {_HOW_TO_GO_ON}") from error
            except EngineLost as error:
                lost = error
        raise TrainingError(
            f"{lost}; asked {ATTEMPTS} times, with all adapters loaded anew. Look at what the "
            f"engine printed (out of memory?). {_HOW_TO_GO_ON}"
        ) from lost

    def publish(self, policy: str, version: int) -> None:
        """The engines get the weights when they are asked next; one may be asleep until then."""
        self._versions[policy] = version
        for place in range(len(self.engines)):
            name, _ = self._proven.get((place, policy), ("", -1))
            self._proven[place, policy] = (name, -1)

    def rest(self) -> None:
        """Let the engines give back their memory, where the run says that they share a device."""
        if not self.settings.can_sleep:
            return
        try:
            for engine in self.engines:
                engine.sleep()
        except (EngineLost, EngineRefused) as error:
            raise TrainingError(f"{error}; leave --sampler-sleep out. {_HOW_TO_GO_ON}") from error
        self._is_asleep = True

    def close(self) -> None:
        for place, engine in enumerate(self.engines):
            if place in self._begun:
                self._leave(place)
            engine.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _leave(self, place: int) -> None:
        """Unload this run's adapters from an engine, if it still answers."""
        try:
            self._wake()
            for name in self._mine(self.engines[place]):
                self.engines[place].unload(name)
        except (EngineLost, EngineRefused):
            return  # it has nothing of ours any more, or is beyond asking

    def _wake(self) -> None:
        if self._is_asleep:
            for engine in self.engines:
                engine.wake()
            self._is_asleep = False
            # Whatever sleep did to the weights, it is proven again.
            self._proven = {at: (name, -1) for at, (name, _) in self._proven.items()}

    def _recover(self) -> None:
        """Bring the engines back, knowing nothing of what they still hold."""
        for engine in self.engines:
            engine.revive(self.seconds)
            if self._is_asleep:
                engine.wake()
        self._is_asleep = False
        self._begun.clear()
        self._proven.clear()

    def _mine(self, engine: Engine) -> list[str]:
        return [name for name in engine.adapters() if f"-{self.mark}." in name]

    def _begin(self, place: int) -> None:
        """Unload what an earlier life of this run left in an engine."""
        engine = self.engines[place]
        engine.check(self.settings)
        for name in self._mine(engine):
            engine.unload(name)
        self._begun.add(place)

    def _bring_up_to_date(self) -> None:
        """Load what has changed since, prove it, and drop what went before."""
        if not self._begun:
            for place in range(len(self.engines)):
                self._begin(place)
            shutil.rmtree(self.directory, ignore_errors=True)
        if any(not speaker.policy for speaker in self.speakers):
            for place in range(len(self.engines)):
                if self._proven.get((place, ""), ("", -1))[1] < 0:
                    self._prove(place, "", "", 0)
                    self._proven[place, ""] = ("", 0)
        for policy, version in self._versions.items():
            if all(self._proven.get((p, policy), ("", -1))[1] == version
                   for p in range(len(self.engines))):  # fmt: skip
                continue
            # More than the version: what is published again has a new name, too.
            name = f"{policy}@{version}-{self.mark}.{secrets.token_hex(4)}"
            write_adapter(self.language, policy, self.directory / name)
            for place, engine in enumerate(self.engines):
                engine.load(name, self.directory / name)
                self._prove(place, policy, name, version)
                before, _ = self._proven.get((place, policy), ("", -1))
                self._proven[place, policy] = (name, version)
                if before:
                    engine.unload(before)
                    if place == len(self.engines) - 1:
                        shutil.rmtree(self.directory / before, ignore_errors=True)

    def _prove(self, place: int, policy: str, adapter: str, version: int) -> None:
        """Raise TrainingError for an engine that speaks with other weights than the trainer's."""
        engine = self.engines[place]
        mine = [speaker for speaker in self.speakers if speaker.policy == policy]
        what = f"policy '{policy}', version {version}" if policy else "the base model"
        for speaker in {speaker.temperature: speaker for speaker in mine}.values():
            prompts = [self.encode(speaker, chat) for chat in self.chats]
            if self._rounding is None:
                self._rounding = own_rounding(self.language, prompts)
            gap = canary(
                engine, adapter, self.language, speaker, prompts, self.settings.max_model_len,
                self._rounding,
            )  # fmt: skip
            self.gaps[engine.name, policy] = gap
            if not gap.is_right:
                raise TrainingError(
                    f"{what}: {engine.name} does not speak with the weights that are trained. Its "
                    f"log-probs of {gap.tokens} canary tokens and the trainer's differ by "
                    f"{gap.largest:.2g} nats at most and {gap.mean:.2g} on average; the "
                    f"{gap.measure} may be {gap.limit:.2g}. Nothing of this step was recorded. "
                    "Look whether it serves this run's model and dtype (gradlab serve RUN starts a "
                    f"right one), and whether others write to {self.directory}. {_HOW_TO_GO_ON}"
                )

    def _draw(
        self,
        wave: Wave,
        key: Sequence[int],
        rows: Mapping[Speaker, Sequence[Sequence[int]]] | None,
    ) -> dict[Speaker, list[Sample]]:
        asked = [(speaker, prompt) for speaker in sorted(wave) for prompt in wave[speaker]]
        if rows is None:
            seeds = seeds_of([(*key, slot) for slot in range(len(asked))])
        else:
            seeds = seeds_of([(*key, *row) for speaker in sorted(wave) for row in rows[speaker]])
        shares = dealt([(speaker.policy, prompt) for speaker, prompt in asked], len(self.engines))
        requests = [
            [
                Request(
                    self._proven[place, asked[i][0].policy][0], asked[i][1],
                    asked[i][0].temperature, asked[i][0].max_tokens,
                    self.language.sampling.end_ids, seeds[i],
                )
                for i in share
            ]
            for place, share in enumerate(shares)
        ]  # fmt: skip
        with ThreadPoolExecutor(len(self.engines)) as pool:
            said = list(pool.map(lambda engine, mine: engine.draw(mine), self.engines, requests))
        found = {
            i: sample
            for share, samples in zip(shares, said, strict=True)
            for i, sample in zip(share, samples, strict=True)
        }
        in_order = iter([found[i] for i in range(len(asked))])
        return {speaker: [next(in_order) for _ in wave[speaker]] for speaker in sorted(wave)}


_HOW_TO_GO_ON = (
    "What was recorded is whole: gradlab train --resume goes on from the last checkpoint, with "
    "another --sampler-url if need be."
)


def seeds_of(keys: Sequence[Sequence[int]]) -> list[int]:
    """A seed for every key, and from it alone: a resumed run asks for the same."""
    return [
        int(np.random.SeedSequence([*key]).generate_state(1, np.uint64)[0] >> 1) for key in keys
    ]


def dealt(asked: Sequence[tuple[str, tuple[int, ...]]], engines: int) -> list[list[int]]:
    """Places of the requests that each engine gets: about as many, equal prompts together."""
    alike: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for place, request in enumerate(asked):
        alike.setdefault(request, []).append(place)
    shares: list[list[int]] = [[] for _ in range(engines)]
    for places in alike.values():
        min(shares, key=len).extend(places)
    return shares
