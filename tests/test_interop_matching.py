"""Metric names and map files lead to the fields that mean the same, and to no others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gradlab.interop.logs.history import Part, Row, join
from gradlab.interop.logs.lacking import guessed_size
from gradlab.interop.logs.naming import names
from gradlab.interop.logs.naming.matching import Matched, match
from gradlab.interop.logs.naming.names import named
from gradlab.interop.logs.naming.targets import ColumnMap, Target, read_map


def matched(values: dict[str, float], given: ColumnMap | None = None, **asked: object) -> Matched:
    history = join([Part("a", [Row(1, values)])])
    return match(history, given or ColumnMap(), **asked)  # type: ignore[arg-type]


def fields(found: Matched) -> dict[str, float]:
    return {str(target): float(value_T[0]) for target, value_T in found.fields.items()}


def test_isolated_policies_of_the_papers_trainer() -> None:
    found = matched(
        {
            "actor/generator/grad_norm": 0.5,
            "actor/generator/training_ppl": 1.25,
            "actor/evaluator/grad_norm": 3.0,
            "actor/evaluator/pg_clipfrac": 0.01,
            "actor/evaluator/kl": 0.002,
            "actor/entropy": 0.4,
            "actor/lr": 2e-5,
            "batch/success": 0.41,
            "evaluator_acc": 0.7,
            "response_length/mean": 800.0,
            "val/unknown/pass@1": 0.3,
        }
    )
    assert found.routing == {"generator": "generator", "evaluator": "evaluator"}
    assert fields(found) == {
        "Gradient(generator).norm": 0.5,
        "UpdateMetrics(generator).grad_norm": 0.5,
        "RoleLedger(generator).perplexity": 1.25,
        "Gradient(evaluator).norm": 3.0,
        "UpdateMetrics(evaluator).grad_norm": 3.0,
        "RoleLedger(evaluator).clip_fraction": 0.01,
        "UpdateMetrics(generator).learning_rate": 2e-5,
        "UpdateMetrics(evaluator).learning_rate": 2e-5,
        "RunLedger.accuracy": 0.41,
        "RoleLedger(evaluator).own_accuracy": 0.7,
        "Evaluation.accuracy": 0.3,
    }
    assert "KL to the rollout policy" in found.refused["actor/evaluator/kl"]
    assert found.refused["actor/entropy"] == "one value for all roles"
    assert found.refused["response_length/mean"] == "one value for all roles"


def test_shared_policy_has_a_norm_of_its_own_and_none_by_role() -> None:
    found = matched({"actor/grad_norm": 0.5, "generator_acc": 0.4, "aggregator_acc": 0.6})
    assert found.routing == {"generator": "shared", "aggregator": "shared"}
    assert fields(found)["UpdateMetrics(shared).grad_norm"] == 0.5
    assert not any(target.kind == "Gradient" for target in found.fields)


def test_what_is_measured_over_all_rows_is_the_roles_where_there_is_one() -> None:
    found = matched({"actor/grad_norm": 0.5, "actor/entropy": 0.4, "response_length/mean": 800.0})
    assert found.roles == ("agent",)
    assert fields(found) == {
        "Gradient(agent).norm": 0.5,
        "UpdateMetrics(shared).grad_norm": 0.5,
        "RoleLedger(agent).entropy": 0.4,
        "RoleLedger(agent).length_mean": 800.0,
    }


def test_trl_and_its_wandb_names_lead_to_the_same_fields() -> None:
    here = {"reward": 0.5, "kl": 0.01, "grad_norm": 0.4, "completions/mean_length": 200.0}
    there = {f"train/{name}": value for name, value in here.items()}
    assert fields(matched(here)) == fields(matched(there))
    assert fields(matched(here))["RoleLedger(agent).kl"] == 0.01
    assert fields(matched({"eval/rewards/accuracy_reward/mean": 0.3}))["Evaluation.accuracy"] == 0.3


def test_parallel_agents_are_one_role_and_their_accuracy_is_the_mean() -> None:
    found = matched({"generator0_acc": 0.2, "generator1_acc": 0.4, "generator2_acc": 0.6})
    assert found.roles == ("generator",)
    assert fields(found)["RoleLedger(generator).own_accuracy"] == pytest.approx(0.4)
    assert found.notes == [
        "generator0, generator1, generator2 are agents of role 'generator': their mean was taken"
    ]


def test_role_whose_name_ends_in_a_digit_stays_itself() -> None:
    assert matched({"solver7_acc": 0.2, "judge_acc": 0.5}).roles == ("solver7", "judge")


def test_accuracy_of_a_validation_set_is_no_role() -> None:
    assert matched({"val_acc": 0.2, "judge_acc": 0.5}).roles == ("judge",)


def test_several_validation_sets_are_a_question() -> None:
    values = {"val/aime/pass@1": 0.1, "val/math500/pass@1": 0.5}
    with pytest.raises(ValueError, match=r"2 metrics could be .*aime.*math500.*--accuracy NAME"):
        matched(values)
    found = matched(values, accuracy="val/math500/pass@1")
    assert fields(found)["Evaluation.accuracy"] == 0.5
    assert "taken from 'val/math500/pass@1'" in found.refused["val/aime/pass@1"]
    with pytest.raises(ValueError, match=r"no metric 'x' to take as held-out accuracy"):
        matched(values, accuracy="x")


def test_samples_per_problem_are_read_off_the_name() -> None:
    found = named(["val-core/openai/gsm8k/acc/mean@8", "val-core/openai/gsm8k/acc/best@8/mean"])
    assert found.samples == 8


def test_reward_that_is_no_share_is_not_taken_for_an_accuracy() -> None:
    found = matched({"val-core/x/reward/mean@1": -0.25, "actor/lr": 1e-6})
    assert "Evaluation.accuracy" not in fields(found)
    assert (
        "-0.25 at step 1, expected 0 to 1; with rewards of -1 and 1 say plus: 1"
        in found.refused["val-core/x/reward/mean@1"]
    )


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        ("both", r"routing is 'both', expected 'shared', 'isolated' or role=policy"),
        (
            {"solver": "p"},
            r"routing says nothing about judge; expected a policy for each of solver, judge",
        ),
    ],
)
def test_bad_routing(routing: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matched({"solver_acc": 0.1, "judge_acc": 0.2}, routing=routing)


# map files


def written(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_map_gives_columns_their_fields(tmp_path: Path) -> None:
    given = read_map(
        written(
            tmp_path / "map.json",
            {
                "step": "it",
                "routing": {"solver": "p", "judge": "p"},
                "task": "sums",
                "eval_size": 50,
                "columns": {
                    "g1": "Gradient(solver).norm",
                    "g2": "Gradient(judge).norm",
                    "c": "Gradient(solver, judge).cosine",
                    "lr": ["UpdateMetrics(p).learning_rate", "RoleLedger(solver).kl"],
                    "score": {"to": "Evaluation.accuracy", "times": 0.01},
                },
            },
        )
    )
    assert (given.step, given.eval_size, given.about) == ("it", "50", {"task": "sums"})
    values = {"g1": 3.0, "g2": 4.0, "c": 0.5, "lr": 1e-4, "score": 41.0, "reward": 0.2}
    found = matched(values, given, routing=given.routing)
    assert fields(found) == pytest.approx(
        {
            "Gradient(solver).norm": 3.0,
            "Gradient(judge).norm": 4.0,
            "Gradient(solver, judge).cosine": 0.5,
            "UpdateMetrics(p).learning_rate": 1e-4,
            "RoleLedger(solver).kl": 1e-4,
            "Evaluation.accuracy": 0.41,
            "RunLedger.reward_mean": 0.2,
        }
    )


def test_map_in_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="reads YAML")
    file = tmp_path / "map.yaml"
    file.write_text("columns:\n  acc: Evaluation.accuracy\n  n: Evaluation.answers\n")
    assert read_map(file).columns["acc"] == (Target("Evaluation", "accuracy"),)


BAD_MAPS = [
    ([], r"expected an object with 'columns'.*got list"),
    ({"columns": {}, "colour": 1}, r"unknown colour; it may hold columns, step"),
    ({"columns": {"a": "accuracy"}}, r"column 'a': 'accuracy' is no field; expected such as RunL"),
    ({"columns": {"a": "RunLedger.speed"}}, r"RunLedger has no field 'speed'; it has accuracy"),
    ({"columns": {"a": "RoleLedger.kl"}}, r"names 0, expected 1 role in the brackets"),
    ({"columns": {"a": "Gradient(x).cosine"}}, r"names 1, expected 2 roles"),
    ({"columns": {"a": {"times": 2}}}, r"column 'a': expected 'to' and maybe 'times'"),
    ({"columns": {"a": {"to": "RunLedger.accuracy", "times": "x"}}}, r"times is 'x', expected a"),
    ({"columns": {"a": 3}}, r"column 'a': is 3, expected a field"),
    (
        {"columns": {"a": "RunLedger.accuracy", "b": "RunLedger.accuracy"}},
        r"more than one column goes to RunLedger\.accuracy",
    ),
    ({"columns": {"a": "RunLedger.accuracy"}, "routing": 3}, r"routing is 3, expected shared"),
]


@pytest.mark.parametrize(("document", "message"), BAD_MAPS)
def test_bad_map_is_answered_with_what_it_may_say(
    tmp_path: Path, document: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_map(written(tmp_path / "map.json", document))


def test_bad_map_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: not JSON"):
        read_map(tmp_path / "a.json")
    pytest.importorskip("yaml", reason="reads YAML")
    (tmp_path / "a.yaml").write_text("columns: [")
    with pytest.raises(ValueError, match=r"a\.yaml: not YAML"):
        read_map(tmp_path / "a.yaml")


def mapping(**columns: str) -> ColumnMap:
    return ColumnMap({name: (Target.parse(text),) for name, text in columns.items()})


BAD_MATCHES = [
    (
        mapping(x="RunLedger.accuracy"),
        None,
        r"the map names 'x', which the run did not log; .*a, b",
    ),
    (
        mapping(a="RunLedger.accuracy"),
        None,
        r"'a' goes to RunLedger\.accuracy, but is 41 at step 1",
    ),
    (
        mapping(a="Gradient(r).norm", b="Gradient(s).norm"),
        None,
        r"does not say whether these share",
    ),
    (mapping(a="UpdateMetrics(p).loss"), None, r"no role is routed to a policy 'p'; .* shared"),
    (
        mapping(a="Gradient(r).norm", b="Gradient(r, s).cosine"),
        "isolated",
        r"expected two roles of one policy; r trains 'r', s trains 's'",
    ),
    (
        mapping(a="RoleEvaluation(r).own_accuracy"),
        None,
        r"no column for Evaluation\.accuracy, which every evaluation has",
    ),
    (mapping(b="Gradient(r).norm"), None, r"'b' goes to Gradient\(r\)\.norm, but is -2 at step 1"),
]


@pytest.mark.parametrize(("given", "routing", "message"), BAD_MATCHES)
def test_map_that_does_not_fit_the_run(given: ColumnMap, routing: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matched({"a": 41.0, "b": -2.0}, given, routing=routing)


# the number of answers behind a rate


@pytest.mark.parametrize("size", [30, 64, 500])
def test_size_of_an_evaluation_shows_in_its_rates(size: int) -> None:
    rates = np.array([7, 11, 12, 13, 17, 19, 23]) / size
    assert guessed_size(rates) == size
    assert guessed_size(np.array([0.123456, 0.31415926, 0.27182818, 0.1618033])) is None
    assert guessed_size(np.array([0.5, 0.5, 0.5])) is None


@pytest.mark.parametrize(("shared", "is_of_policy"), [(False, True), (True, False)])
def test_a_roles_gradient_norm_is_its_policys_only_where_it_is_alone(
    shared: bool, is_of_policy: bool
) -> None:
    routing = {"solver": "p", "judge": "p" if shared else "q"}
    targets, why = names._of_role("grad_norm", "solver", routing, set())
    assert why == ""
    assert Target("Gradient", "norm", ("solver",)) in targets
    assert (Target("UpdateMetrics", "grad_norm", ("p",)) in targets) is is_of_policy
