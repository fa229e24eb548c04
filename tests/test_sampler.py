"""A rollout needs a sampler and nothing else: any one that answers prompts will do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from conftest import SmallConfig

from gradlab.records import Agent
from gradlab.workflows import Ask, Play, workflow
from trainers.evaluate import evaluate
from trainers.judge import Judge
from trainers.models.language import load_language_model
from trainers.models.local_sampler import LocalSampler, rng
from trainers.models.sampler import Sample, Sampler, Speaker, Wave
from trainers.models.sampling import sample
from trainers.prompts.chat import Chat, Prompts
from trainers.prompts.compact import CompactPrompts
from trainers.rollout import rollout
from trainers.tasks.problem import Problem

SUMS = (Problem("sum-2-3", "math", "2+3", "5"), Problem("sum-4-4", "math", "4+4", "8"))


@dataclass
class Scripted:
    """Says [5] as a solver and picks the first candidate: a sampler without any model."""

    prompts: Prompts = field(default_factory=CompactPrompts)
    max_prompt_tokens: int = 100
    asked: list[tuple[dict[str, int], tuple[int, ...]]] = field(default_factory=list)

    def encode(self, speaker: Speaker, chat: Chat) -> tuple[int, ...]:
        return tuple(map(ord, "".join(message.text for message in chat)))

    def decode(self, speaker: Speaker, ids: Sequence[int], *, keep_special: bool = False) -> str:
        return "".join(map(chr, ids))

    def ask(
        self,
        wave: Wave,
        key: Sequence[int],
        rows: Mapping[Speaker, Sequence[Sequence[int]]] | None = None,
    ) -> dict[Speaker, list[Sample]]:
        self.asked.append(({who.policy: len(prompts) for who, prompts in wave.items()}, tuple(key)))
        return {speaker: [self._say(speaker)] * len(prompts) for speaker, prompts in wave.items()}

    def _say(self, speaker: Speaker) -> Sample:
        said = "[1]" if speaker.policy == "judge" else "[5]"
        return Sample(tuple(map(ord, said)), (-0.5,) * 3, truncated=False)

    def publish(self, policy: str, version: int) -> None:
        raise AssertionError("a rollout changes no weights")

    def rest(self) -> None:
        raise AssertionError("a rollout does not know whether another follows")

    def close(self) -> None:
        raise AssertionError("whoever opened it closes it")


def test_a_rollout_plays_on_any_sampler(small_config: SmallConfig) -> None:
    config = small_config(routing="generator=solver,aggregator=judge", eval_samples=2)
    sampler = Scripted()
    accepted: Sampler = sampler  # mypy checks that the protocol is met
    record, episodes = evaluate(
        accepted, config.build_workflow(), config.speakers(), SUMS, config, 3, Judge()
    )
    assert [episode.answer for episode in episodes] == ["5"] * 4
    assert record.correct_PS.tolist() == [[1, 1], [0, 0]]
    # Two waves of 2 problems x 2 samples: three generators each, then one aggregator.
    assert [num for num, _ in sampler.asked] == [{"solver": 12}, {"judge": 4}]
    assert [key[-1] for _, key in sampler.asked] == [0, 1], "wave"
    first = episodes[0].turns[0]
    assert (first.prompt, first.response, first.logprobs) == ("g2+3", "[5]", (-0.5,) * 3)


def test_the_local_sampler_draws_what_the_model_draws(small_config: SmallConfig) -> None:
    """The protocol adds nothing to `sample` but the policy's adapter and the key's numbers."""
    config = small_config(routing="shared")
    language = load_language_model(config, ["shared"])
    sampler, speaker = LocalSampler({config.model: language}), Speaker("shared", config.model)
    chat = language.prompts.generate(SUMS[0])
    prompts = [sampler.encode(speaker, chat)] * 5
    with language.speaking("shared") as model:
        expected = sample(model, prompts, language.sampling, rng(torch.device("cpu"), 1, 2, 3, 0))
    assert sampler.ask({speaker: prompts}, (1, 2, 3))[speaker] == expected
    assert sampler.ask({speaker: prompts}, (1, 2, 4))[speaker] != expected


def test_speakers_of_a_wave_draw_numbers_of_their_own(small_config: SmallConfig) -> None:
    """The second in the order of names gets place 1, whatever the order of the wave."""
    config = small_config(routing="shared")
    language = load_language_model(config, ["shared"])
    sampler = LocalSampler({config.model: language})
    base, trained = Speaker("", config.model), Speaker("shared", config.model)
    prompts = [sampler.encode(base, language.prompts.generate(SUMS[0]))] * 5
    with language.speaking("shared") as model:
        expected = sample(model, prompts, language.sampling, rng(torch.device("cpu"), 7, 1))
    said = sampler.ask({trained: prompts, base: prompts}, (7,))
    assert said[trained] == expected != said[base]


def test_a_rollout_imports_no_model_and_no_torch() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, trainers.rollout; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "trainers.models.sampler" in loaded
    heavy = ("torch", "transformers", "peft", "trainers.models.language", "trainers.policies")
    assert not set(heavy) & set(loaded)


def test_agents_are_asked_once_per_wave(small_config: SmallConfig) -> None:
    """One call with all prompts, however many agents speak."""
    config = small_config(workflow="orchestrator_workers", routing="shared")
    sampler = Scripted()
    episodes = rollout(sampler, config.build_workflow(), config.speakers(), SUMS, 1, (0,), Judge())
    assert {turn.agent for turn in episodes[0].turns} >= {Agent("orchestrator"), Agent("worker")}
    assert len(sampler.asked) == 3


def test_who_is_done_or_given_up_is_not_asked(small_config: SmallConfig) -> None:
    """One turn, three turns, and a prompt that is too long: 2 prompts, then 1, then 1."""

    @workflow(roles={"solver": 1})
    def as_often_as_its_answer(problem: Problem) -> Play:
        for _ in range(int(problem.answer)):
            [reply] = yield [Ask(Agent("solver"), problem.question)]
        return reply.text

    once, thrice = Problem("once", "math", "1", "1"), Problem("thrice", "math", "3", "3")
    too_long = Problem("long", "math", "0" * 101, "1")
    sampler, speakers = Scripted(), {Agent("solver"): Speaker("solver", "any")}
    episodes = rollout(
        sampler, as_often_as_its_answer, speakers, (once, thrice, too_long), 1, (0,), Judge()
    )
    assert [nums for nums, _ in sampler.asked] == [{"solver": 2}, {"solver": 1}, {"solver": 1}]
    assert [len(episode.turns) for episode in episodes] == [1, 3, 0]
    assert [episode.answer for episode in episodes] == ["[5]", "[5]", None]
    assert "101 tokens, limit 100" in str(episodes[2].failure)
