"""Sketches against the gradients they were made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradlab.probe.measures.sketches import Sketcher
from gradlab.probe.probe import Probe, attach
from gradlab.readout.sketch_cosines import cosines, directness
from gradlab.records import Agent
from gradlab.store.run import Run, open_run
from trainers.config import TrainConfig
from trainers.training import train
from trainers.watch.progress import Progress

AGENTS = (Agent("generator", 0), Agent("generator", 1), Agent("aggregator"))
AGENT_B = torch.tensor([0, 1, 2, 0, 1, 2, 0])
NUM_UPDATES = 6


def test_a_sketch_is_a_sum_of_signed_elements_per_bucket() -> None:
    gradient_AN = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    sketcher = Sketcher(1000, 31)
    expected_AK = torch.zeros(3, 31, dtype=torch.float64)
    for i in range(1000):
        expected_AK[:, i % 31] += sketcher.sign_P[i] * gradient_AN[:, i].double()
    torch.testing.assert_close(sketcher.of(gradient_AN), expected_AK, rtol=1e-5, atol=1e-5)
    # Stretches of the flat axis, as the optimizer's step comes in, add up to the whole.
    parts = [sketcher.of(gradient_AN[:, lo : lo + 170], lo) for lo in range(0, 1000, 170)]
    torch.testing.assert_close(torch.stack(parts).sum(0), expected_AK, rtol=1e-5, atol=1e-5)


def test_half_of_the_signs_are_negative_and_all_runs_have_the_same() -> None:
    sign_P = Sketcher(100_000, 31).sign_P
    assert abs(float(sign_P.double().mean())) < 4 / math.sqrt(100_000)
    assert sign_P[:12].tolist() == Sketcher(12, 7).sign_P.tolist()
    # Written down: a store of today is compared with one of next year.
    assert sign_P[:12].tolist() == SIGNS


SIGNS = [1, 1, 1, 1, 1, 1, 1, 1, -1, -1, 1, -1]


@pytest.mark.parametrize("num_buckets", [1, 4, 4096, -7])
def test_buckets_that_are_no_prime_are_refused(num_buckets: int) -> None:
    with pytest.raises(ValueError, match=rf"is {num_buckets}; expected a prime number such as"):
        Sketcher(10, num_buckets)


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9])
def test_cosines_are_off_by_what_the_number_of_buckets_says(cosine: float) -> None:
    num_buckets, dim = 257, 8000
    rng = np.random.default_rng(0)
    sketcher, errors = Sketcher(dim, num_buckets), []
    for _ in range(400):
        a, b = rng.normal(size=(2, dim))
        b -= a * (a @ b) / (a @ a)
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        planted = np.stack([a, cosine * a + math.sqrt(1 - cosine**2) * b])
        sketch = sketcher.of(torch.from_numpy(planted)).numpy()
        errors.append(cosines(sketch[:1], sketch[1:])[0, 0] - cosine)
    rmse = float(np.sqrt(np.mean(np.square(errors))))
    assert rmse * math.sqrt(num_buckets) / (1 - cosine**2) == pytest.approx(1, abs=0.12)


# From the probe through the store.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6, dtype=torch.float64)
        self.second = nn.Linear(6, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).tanh())
        return out


def losses(model: nn.Module, update: int) -> Tensor:
    generator = torch.Generator().manual_seed(update)
    x = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    rows: Tensor = (model(x) ** 2).sum(1)
    return rows


def agent_gradients(model: nn.Module, update: int) -> Tensor:
    """[A, P]"""
    rows, parts = losses(model, update), []
    for agent in range(3):
        loss = rows[agent == AGENT_B].sum()
        gradients = torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
        parts.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(parts)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def attached(path: Path, num_buckets: int) -> tuple[Net, torch.optim.Optimizer, Probe]:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    probe = attach(model, optimizer, agents=AGENTS, record=path, sketch_buckets=num_buckets)
    return model, optimizer, probe


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Tensor, Tensor]:
    """A run with more buckets than parameters, its gradients [U, A, P] and its steps [U, P]."""
    path = tmp_path_factory.mktemp("sketched") / "run.zarr"
    model, optimizer, probe = attached(path, 101)
    gradients, steps = [], []
    for update in range(NUM_UPDATES):
        gradients.append(agent_gradients(model, update))
        before = flat(model)
        probe.step = 1 + update // 2  # two updates per training step
        probe.tag(AGENT_B)
        losses(model, update).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(flat(model) - before)
    probe.close()
    return open_run(path), torch.stack(gradients), torch.stack(steps)


def exact_cosines(a_UP: Tensor, b_UP: Tensor) -> np.ndarray:
    a_UP, b_UP = (x / x.norm(dim=1, keepdim=True) for x in (a_UP, b_UP))
    return (a_UP @ b_UP.T).numpy()


def test_cosines_across_updates_are_those_of_the_gradients(
    recorded: tuple[Run, Tensor, Tensor],
) -> None:
    run, gradient_UAP, step_UP = recorded
    generator_UP, aggregator_UP = gradient_UAP[:, :2].sum(1), gradient_UAP[:, 2]
    # No two parameters share a bucket: what is left is the rounding to 16 bit.
    np.testing.assert_allclose(
        run.cosine_across("generator"), exact_cosines(generator_UP, generator_UP), atol=2e-3
    )
    np.testing.assert_allclose(
        run.cosine_across("generator", AGENTS[2]),
        exact_cosines(generator_UP, aggregator_UP),
        atol=2e-3,
    )
    np.testing.assert_allclose(
        run.cosine_across("total", of="update"), exact_cosines(step_UP, step_UP), atol=2e-3
    )
    np.testing.assert_allclose(
        np.linalg.norm(run.sketch("aggregator"), axis=1), aggregator_UP.norm(dim=1), rtol=2e-3
    )


def test_sketches_of_the_parts_add_up_to_the_step(recorded: tuple[Run, Tensor, Tensor]) -> None:
    run, _, step_UP = recorded
    expected_UK = Sketcher(step_UP.shape[1], 101).of(step_UP).numpy()
    parts_RUK = np.stack([run.sketch(role, of="update") for role in run.roles])
    # Parts that cancel are larger than their sum, and so is their rounding to 16 bit.
    atol = 1e-3 * np.abs(parts_RUK).max()
    np.testing.assert_allclose(parts_RUK.sum(0), expected_UK, atol=atol)
    assert np.abs(expected_UK).max() > 20 * atol


def test_directness_is_that_of_the_path(recorded: tuple[Run, Tensor, Tensor]) -> None:
    run, _, step_UP = recorded
    found = run.directness("total", window=2)
    assert found.step_T.tolist() == [1, 2, 3]
    for index, part in enumerate((step_UP[:2], step_UP[:4], step_UP[2:])):
        exact = float(part.sum(0).norm() / part.norm(dim=1).sum())
        assert found.value_T[index] == pytest.approx(exact, rel=5e-3)


def test_directness_by_hand() -> None:
    # (3, 0), (0, 4) in step 1; (-3, -4) in step 5: 5 of 7, then 0 of 12; alone: 5 of 5
    sketch_UK = np.array([[3.0, 0.0], [0.0, 4.0], [-3.0, -4.0]])
    step_U, norm_U = np.array([1, 1, 5]), np.array([3.0, 4.0, 5.0])
    step_T, value_T = directness(step_U, sketch_UK, norm_U, window=2)
    assert step_T.tolist() == [1, 5]
    np.testing.assert_allclose(value_T, [5 / 7, 0])
    np.testing.assert_allclose(directness(step_U, sketch_UK, norm_U, window=1)[1], [5 / 7, 1])
    with pytest.raises(ValueError, match="window is 0 steps"):
        directness(step_U, sketch_UK, norm_U, window=0)


def test_runs_are_compared_by_their_sketches(
    recorded: tuple[Run, Tensor, Tensor], tmp_path: Path
) -> None:
    run, gradient_UAP, _ = recorded
    model, optimizer, probe = attached(tmp_path / "other.zarr", 101)
    for update in (4, 0):
        gradient_AP = agent_gradients(model, update)
        probe.tag(AGENT_B)
        losses(model, update).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    probe.close()
    found = run.cosine_between(open_run(tmp_path / "other.zarr"), "generator")
    assert found.shape == (NUM_UPDATES, 2)
    expected = exact_cosines(gradient_UAP[:, :2].sum(1), gradient_AP[None, :2].sum(1))
    np.testing.assert_allclose(found[:, 1:], expected, atol=2e-3)

    model, optimizer, probe = attached(tmp_path / "finer.zarr", 103)
    probe.close()
    with pytest.raises(ValueError, match=r"sketch_buckets of policy 'shared' .* is 101, .* 103"):
        run.cosine_between(open_run(tmp_path / "finer.zarr"), "generator")


def test_gradients_of_zero_have_no_angle(tmp_path: Path) -> None:
    model, optimizer, probe = attached(tmp_path / "run.zarr", 101)
    for weight in (1.0, 0.0):
        probe.tag(AGENT_B)
        (losses(model, 0) * torch.where(AGENT_B == 2, weight, 1.0)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    probe.close()
    run = open_run(tmp_path / "run.zarr")
    np.testing.assert_array_equal(run.sketch("aggregator")[1], 0)
    assert np.isnan(run.cosine_across("aggregator")[0, 1])
    assert np.isfinite(run.cosine_across("generator")).all()


def test_without_sketches_the_run_says_so(tmp_path: Path) -> None:
    model, optimizer, probe = attached(tmp_path / "run.zarr", 0)
    probe.tag(AGENT_B)
    losses(model, 0).sum().backward()
    optimizer.step()
    probe.close()
    run = open_run(tmp_path / "run.zarr")
    assert "sketch" not in run.to_xarray()["updates/shared"]
    with pytest.raises(ValueError, match="'sketch' was not recorded"):
        run.cosine_across("generator")
    with pytest.raises(ValueError, match="'update_sketch' was not recorded"):
        run.directness("generator")


def test_modes_that_keep_no_gradient_refuse_sketches() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    for mode in ("sketch", "streaming"):
        with pytest.raises(ValueError, match=f"mode '{mode}' does not keep; use 'exact'"):
            attach(model, optimizer, agents=AGENTS, mode=mode, sketch_buckets=101)  # type: ignore[arg-type]


def test_a_training_run_keeps_sketches(
    small_config: Callable[..., TrainConfig], quiet: Progress
) -> None:
    config = small_config(sketch_buckets=4093)
    train(config, quiet)
    run = open_run(config.out)
    assert np.isfinite(run.sign_split(run.roles[0])["positive"].value_T).all()
    for policy in run.policies:
        assert policy.sketch_buckets == 4093
        num_updates = len(run.gram(policy.name).step_U)
        assert run.sketch(policy.agents[0]).shape == (num_updates, 4093)
