"""Sample in this process, from the very weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from gradlab.workflows import Chat
from trainers.models.language import LanguageModel
from trainers.models.merging import Copies, merged
from trainers.models.sampler import Sample, Speaker, Wave
from trainers.models.sampling import sample
from trainers.policies import TrainingError, not_finite
from trainers.prompts.chat import Prompts


@dataclass(frozen=True)
class LocalSampler:
    """A sampler whose weights are the trainer's own."""

    languages: Mapping[str, LanguageModel]
    """By name of the base model, all asked in the same style."""
    merges: bool = False
    """Whether each policy's adapter is merged into copies of the layers while it speaks: rounded
    otherwise, and faster."""
    copies: dict[str, Copies] = field(default_factory=dict)
    """By name of the base model, as long as something may be asked."""

    @property
    def prompts(self) -> Prompts:
        return next(iter(self.languages.values())).prompts

    @property
    def max_prompt_tokens(self) -> int:
        return min(language.max_prompt_tokens for language in self.languages.values())

    def encode(self, speaker: Speaker, chat: Chat) -> tuple[int, ...]:
        return self.languages[speaker.model].encode(chat)

    def decode(self, speaker: Speaker, ids: Sequence[int], *, keep_special: bool = False) -> str:
        return self.languages[speaker.model].decode(ids, keep_special=keep_special)

    def ask(
        self,
        wave: Wave,
        key: Sequence[int],
        rows: Mapping[Speaker, Sequence[Sequence[int]]] | None = None,
    ) -> dict[Speaker, list[Sample]]:
        """One batch per speaker. Raises TrainingError naming the policy whose output is not finite,
        and why."""
        # In the order of their names: the numbers drawn do not depend on who speaks first.
        return {
            speaker: self._ask_one(
                speaker,
                wave[speaker],
                rng(self.languages[speaker.model].device, *key, index),
                None if rows is None else [(*key, *row) for row in rows[speaker]],
            )
            for index, speaker in enumerate(sorted(wave))
        }

    def _ask_one(
        self,
        speaker: Speaker,
        prompts: Sequence[tuple[int, ...]],
        generator: torch.Generator,
        keys: Sequence[Sequence[int]] | None,
    ) -> list[Sample]:
        language = self.languages[speaker.model]
        options = replace(
            language.sampling, temperature=speaker.temperature, max_tokens=speaker.max_tokens
        )
        try:
            with self._speaking(speaker) as model:
                return sample(model, prompts, options, generator, keys)
        except FloatingPointError as error:
            bad = not_finite(language, speaker.policy) if speaker.policy else []
            cause = (
                f"{len(bad)} of its parameters are not finite ({bad[0]})"
                if bad
                else "its parameters are finite: the forward pass overflowed"
            )
            who = f"policy '{speaker.policy}'" if speaker.policy else f"model {speaker.model}"
            raise TrainingError(
                f"sampling from {who}: {error}; {cause}. Start a new run with a "
                "lower --learning-rate: resuming would repeat this step exactly."
            ) from error

    @contextmanager
    def _speaking(self, speaker: Speaker) -> Iterator[Any]:
        """The model that says what the speaker says."""
        with self.languages[speaker.model].speaking(speaker.policy) as model:
            if not self.merges or not isinstance(model, PeftModel):
                yield model
                return
            copies = self.copies.setdefault(speaker.model, {})
            with merged(model, speaker.policy, copies) as plain:
                yield plain

    def publish(self, policy: str, version: int) -> None:
        """Nothing to do: there is no second copy of the weights."""

    def rest(self) -> None:
        """The copies are made anew by the next wave."""
        self.copies.clear()

    def close(self) -> None:
        """The weights are the trainer's, the copies are not."""
        self.copies.clear()


def rng(device: torch.device, *key: int) -> torch.Generator:
    """A generator that depends on `key` alone, so that a resumed run draws the same numbers."""
    state = np.random.SeedSequence([part & 0xFFFFFFFF for part in key]).generate_state(2)
    return torch.Generator(device).manual_seed(int(state[0]) << 31 ^ int(state[1]))
