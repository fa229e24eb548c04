"""Say what a rollout asks of a sampler: responses to prompts, from weights that training publishes.

`trainers.models.local_sampler` samples from the very weights that are trained; an engine of its own
process or machine is another implementation of the same protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gradlab.workflows import Chat
from trainers.prompts.chat import Prompts


@dataclass(frozen=True)
class Sample:
    """One sampled response."""

    ids: tuple[int, ...]
    """Response tokens; ends with the end token unless `truncated`."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under the temperature-scaled policy, in nats."""
    truncated: bool


@dataclass(frozen=True, order=True)
class Speaker:
    """Whose weights answer the prompts of an agent, and how its responses are drawn."""

    policy: str
    """Name of the policy; '' for the base model, with which frozen roles speak."""
    model: str
    """Name of the base model."""
    temperature: float = 1.0
    max_tokens: int = 16
    """Longest response."""


Wave = Mapping[Speaker, Sequence[tuple[int, ...]]]
"""The prompts of everything that is asked at once."""


class Sampler(Protocol):
    """Whoever answers prompts with the weights of a policy."""

    @property
    def prompts(self) -> Prompts:
        """How the models behind it are asked."""

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt that it takes."""

    def encode(self, speaker: Speaker, chat: Chat) -> tuple[int, ...]:
        """Token ids of a chat as the speaker's model reads it, ready for its response."""

    def decode(self, speaker: Speaker, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """The text of token ids."""

    def ask(
        self,
        wave: Wave,
        key: Sequence[int],
        rows: Mapping[Speaker, Sequence[Sequence[int]]] | None = None,
    ) -> dict[Speaker, list[Sample]]:
        """A response to each prompt, in their order, drawn with numbers that depend on `key` alone.

        All in one call, which lets an engine answer several policies side by side.

        `rows`: one key more for each prompt. Its response then depends on both keys and on the
        prompt, and not on what else is asked with it.

        Raises TrainingError for a speaker whose output is not finite, and where nobody answers.
        """

    def publish(self, policy: str, version: int) -> None:
        """The policy's weights have changed: whoever asks from now on gets the new ones.

        `version`: training steps that made them.
        """

    def rest(self) -> None:
        """Nothing is asked until weights have changed: memory can be given back until then."""

    def close(self) -> None:
        """Give back what it holds, such as a process."""
