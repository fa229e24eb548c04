"""Episodes played in lock step on the shipped model: complete, repeatable, failures counted."""

from __future__ import annotations

import pytest
import torch
from conftest import SmallConfig

from trainers.config import TrainConfig
from trainers.credit import credit
from trainers.episodes import Episode, trained_turns
from trainers.evaluate import evaluate, evaluation_record
from trainers.judge import Judge
from trainers.models.language import LanguageModel, load_language_model
from trainers.rollout import rng, rollout
from trainers.rundir.transcripts import read_episodes, save_episodes
from trainers.tasks.problem import Problem
from trainers.tasks.sources.embedded import arithmetic

PROBLEMS = arithmetic(2)[1000:1006]


def load(config: TrainConfig) -> LanguageModel:
    return load_language_model(config, list(dict.fromkeys(config.policy_by_role().values())))


def play(
    config: TrainConfig, key: tuple[int, ...] = (0,), language: LanguageModel | None = None
) -> list[Episode]:
    return rollout(
        language or load(config),
        config.build_workflow(),
        config.policy_by_role(),
        PROBLEMS,
        config.samples,
        key,
        Judge(),
    )


@pytest.mark.parametrize("workflow", ["voting", "evaluator_optimizer", "orchestrator_workers"])
def test_episodes_hold_what_the_agents_said(small_config: SmallConfig, workflow: str) -> None:
    config = small_config(workflow=workflow)
    language = load(config)
    episodes = play(config, language=language)
    assert [(e.problem, e.sample) for e in episodes] == [
        (problem, sample) for problem in PROBLEMS for sample in range(config.samples)
    ]
    for episode in episodes:
        assert episode.failure is None
        assert [episode.outcome] == Judge()([(episode.problem, episode.answer)])
        roles = [turn.agent.role for turn in episode.turns]
        assert set(roles) <= set(config.build_workflow().roles)
        if workflow == "evaluator_optimizer":
            assert roles == ["generator", "evaluator"] * (len(roles) // 2)
        for turn in episode.turns:
            assert language.decode(turn.prompt_ids, keep_special=True) == turn.prompt
            assert language.decode(turn.response_ids) == turn.response
            assert episode.problem.question in turn.prompt
            assert len(turn.logprobs) == len(turn.response_ids) > 0
            assert turn.truncated == (turn.response_ids[-1] != language.tokenizer.eos_token_id)
            assert (turn.own_correct is None) == (turn.kind == "plan")
    if workflow == "voting":
        candidates = [turn.response for turn in episodes[0].turns[:3]]
        assert " ".join(candidates) in episodes[0].turns[3].prompt


def test_the_same_key_gives_the_same_episodes(small_config: SmallConfig) -> None:
    config = small_config()
    language = load(config)
    first, again, other = (play(config, key, language) for key in ((1, 2), (1, 2), (1, 3)))
    assert first == again
    assert first != other


def test_untrained_adapters_say_the_same_under_any_routing(small_config: SmallConfig) -> None:
    """Adapters start as the base model; the numbers drawn depend on the order of policy names."""
    shared = play(small_config(routing="shared"))
    renamed = play(small_config(routing="generator=b,aggregator=b"))
    assert shared == renamed


def test_a_prompt_over_the_limit_gives_the_episode_up_and_is_counted(
    small_config: SmallConfig,
) -> None:
    """'<user>g20+10<assistant>' is 8 tokens; the aggregator's prompt holds three candidates."""
    config = small_config(max_prompt_tokens=12)
    episodes = play(config)
    assert all(episode.failure for episode in episodes)
    assert "limit 12" in str(episodes[0].failure)
    assert [turn.agent.role for turn in episodes[0].turns] == ["generator"] * 3
    assert not any(episode.outcome for episode in episodes)
    assert trained_turns(episodes) == []
    record = evaluation_record(episodes, PROBLEMS, ("generator", "aggregator"), config.samples, 3)
    assert (record.correct_PS == 0).all(), "given up is wrong, or long prompts would pay"


def test_evaluation_counts_what_the_episodes_say(small_config: SmallConfig) -> None:
    config = small_config(eval_samples=3)
    language = load(config)
    record, episodes = evaluate(
        language, config.build_workflow(), config.policy_by_role(), PROBLEMS, config, 5, Judge()
    )
    assert record.step == 5
    assert record.correct_PS.shape == (len(PROBLEMS), 3)
    solved = {(e.problem.id, e.sample): e.outcome for e in episodes}
    for p, problem in enumerate(PROBLEMS):
        for s in range(3):
            assert record.correct_PS[p, s] == solved[problem.id, s]
    candidates = [t for e in episodes for t in e.turns if t.agent.role == "generator"]
    generator = record.roles["generator"]
    assert generator.own_accuracy == pytest.approx(
        sum(bool(turn.own_correct) for turn in candidates) / len(candidates)
    )
    offered = [e for e in episodes if any(turn.own_correct for turn in e.turns[:3])]
    assert generator.any_correct == pytest.approx(len(offered) / len(episodes))
    assert record.roles["aggregator"].choice_accuracy == pytest.approx(
        sum(e.outcome for e in offered) / len(offered)
    )


def test_evaluator_confusion_by_hand(small_config: SmallConfig) -> None:
    config = small_config(workflow="evaluator_optimizer", eval_samples=4)
    language = load(config)
    record, episodes = evaluate(
        language, config.build_workflow(), config.policy_by_role(), PROBLEMS, config, 0, Judge()
    )
    cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for episode in episodes:
        for solution, verdict in zip(episode.turns[::2], episode.turns[1::2], strict=True):
            accepted = "[y]" in verdict.response and verdict.parse_ok
            cells[bool(solution.own_correct), accepted] += 1
    wrong = cells[False, True] + cells[False, False]
    right = cells[True, True] + cells[True, False]
    assert record.roles["evaluator"].false_accept == pytest.approx(cells[False, True] / wrong)
    assert record.roles["evaluator"].false_reject == pytest.approx(cells[True, False] / right)


def test_a_policy_without_adapter_is_never_played_by_the_base_model(
    small_config: SmallConfig,
) -> None:
    config = small_config()
    language = load_language_model(config, ["generator"])
    with pytest.raises(ValueError, match=r"policy 'aggregator' has no adapter; .*\['generator'\]"):
        play(config, language=language)


def test_the_generator_depends_on_its_key_alone() -> None:
    device = torch.device("cpu")

    def draw(*key: int) -> float:
        return float(torch.rand(1, generator=rng(device, *key)))

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(*key) for key in [(1, 2), (2, 1), (1,), (1, 2, 0), (0,), (-1,)]}) >= 5


def test_episodes_are_kept_and_read_back(small_config: SmallConfig, tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = small_config()
    episodes = credit(play(config), config)
    save_episodes(tmp_path / "step-000001.jsonl.gz", episodes)
    read = [*read_episodes(tmp_path / "step-000001.jsonl.gz")]
    assert len(read) == len(episodes)
    for kept, episode in zip(read, episodes, strict=True):
        assert kept["problem"] == episode.problem.id
        assert kept["outcome"] == episode.outcome
        assert [t["response"] for t in kept["turns"]] == [t.response for t in episode.turns]
        assert [t["reward"] for t in kept["turns"]] == [float(episode.outcome)] * len(episode.turns)
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == [
        "step-000001.jsonl.gz"
    ]


def test_hostile_text_survives_the_episode_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    hostile = 'line\nbreak "quote" \u2028 [bold] \ud83d\ude00'.encode("utf-16", "surrogatepass")
    problem = Problem("p", "math", hostile.decode("utf-16"), "1")
    save_episodes(tmp_path / "e.jsonl.gz", [Episode(problem, 0, (), None, False, "gave up")])
    [read] = read_episodes(tmp_path / "e.jsonl.gz")
    assert read["question"] == problem.question
    assert read["failure"] == "gave up"
