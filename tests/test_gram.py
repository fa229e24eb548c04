"""Gram read-outs against worked numbers and against the vectors themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlab.readout.gram import (
    coherence,
    cosine,
    grouped,
    grouping,
    inner,
    members,
    norm,
    pull,
    quotient,
    shares,
)
from gradlab.records import Agent

AGENTS = (Agent("generator", 0), Agent("generator", 1), Agent("aggregator"))
ROLES = ("generator", "aggregator")
# g_0 = (3, 0), g_1 = (0, 4), g_2 = (1, 1)
GRAM = np.array([[9.0, 0.0, 3.0], [0.0, 16.0, 4.0], [3.0, 4.0, 2.0]])


def test_worked_numbers() -> None:
    generator, aggregator = members(AGENTS, "generator"), members(AGENTS, "aggregator")
    assert norm(GRAM, members(AGENTS, Agent("generator", 1))) == 4.0
    assert norm(GRAM, generator) == 5.0  # |(3, 4)|
    assert inner(GRAM, generator, aggregator) == 7.0  # 3 * 1 + 4 * 1
    assert cosine(GRAM, generator, aggregator) == pytest.approx(7 / (5 * np.sqrt(2)))
    assert norm(GRAM, members(AGENTS, "total")) == pytest.approx(np.sqrt(41))  # |(4, 5)|
    role_gram = grouped(GRAM, grouping(AGENTS, ROLES))
    np.testing.assert_array_equal(role_gram, [[25.0, 7.0], [7.0, 2.0]])
    np.testing.assert_allclose(pull(role_gram), [32 / 41, 9 / 41])
    np.testing.assert_allclose(shares(np.array([5.0, 3.0])), [5 / 8, 3 / 8])


def test_coherence_runs_from_opposed_over_orthogonal_to_equal() -> None:
    assert coherence(np.array([[1.0, -1.0], [-1.0, 1.0]])) == 0.0
    assert coherence(np.eye(3)) == 1.0
    assert coherence(np.ones((3, 3))) == 3.0
    assert coherence(GRAM[:2, :2]) == 1.0


def test_zero_gradients_have_no_angle_and_no_share() -> None:
    nothing = np.zeros((3, 3))
    assert norm(nothing, members(AGENTS, "generator")) == 0.0
    assert np.isnan(cosine(nothing, members(AGENTS, "generator"), members(AGENTS, "aggregator")))
    assert np.isnan(shares(np.zeros(2))).all()
    assert np.isnan(pull(np.zeros((2, 2)))).all()
    assert np.isnan(quotient(np.array([0.0]), np.array([0.0]))).all()


def test_an_unmeasured_gram_stays_unmeasured() -> None:
    unknown = np.full((4, 3, 3), np.nan)
    assert np.isnan(norm(unknown, members(AGENTS, "generator"))).all()
    assert np.isnan(pull(grouped(unknown, grouping(AGENTS, ROLES)))).all()


def test_cosine_of_tiny_gradients_does_not_underflow() -> None:
    assert cosine(GRAM * 1e-200, np.array([1.0, 0, 0]), np.array([0, 0, 1.0])) == pytest.approx(
        np.sqrt(0.5)
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    num_updates=st.integers(1, 4),
    num_parameters=st.integers(1, 6),
)
def test_read_outs_are_those_of_the_vectors(
    seed: int, num_updates: int, num_parameters: int
) -> None:
    vector_UAP = np.random.default_rng(seed).normal(size=(num_updates, 3, num_parameters))
    gram_UAA = vector_UAP @ vector_UAP.swapaxes(-1, -2)
    generator_UP, aggregator_UP = vector_UAP[:, :2].sum(axis=1), vector_UAP[:, 2]
    w, v = members(AGENTS, "generator"), members(AGENTS, "aggregator")
    np.testing.assert_allclose(norm(gram_UAA, w), np.linalg.norm(generator_UP, axis=1), atol=1e-7)
    np.testing.assert_allclose(
        inner(gram_UAA, w, v), np.sum(generator_UP * aggregator_UP, axis=1), atol=1e-9
    )
    role_gram_URR = grouped(gram_UAA, grouping(AGENTS, ROLES))
    np.testing.assert_allclose(pull(role_gram_URR).sum(axis=-1), 1.0)
    mass_UR = np.sqrt(np.diagonal(role_gram_URR, axis1=1, axis2=2))
    np.testing.assert_allclose(shares(mass_UR).sum(axis=-1), 1.0)
    angle = cosine(gram_UAA, w, v)
    assert np.all((angle >= -1) & (angle <= 1))


def test_what_nobody_measured_spoils_only_what_needs_it() -> None:
    unknown = np.nan
    gram_AA = np.array([[4.0, unknown], [unknown, 9.0]])  # ||g_0|| = 2, ||g_1|| = 3, no angle
    first, second, both = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, 1.0])
    assert norm(gram_AA, first) == 2.0
    assert norm(gram_AA, second) == 3.0
    assert np.isnan(norm(gram_AA, both))
    assert np.isnan(cosine(gram_AA, first, second))
    roles = grouped(gram_AA[None], np.eye(2))
    np.testing.assert_array_equal(roles[0], gram_AA)
