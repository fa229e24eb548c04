"""Every role has one colour, told apart from the others."""

from __future__ import annotations

from gradlab.palette import ROLE_COLORS, role_color


def test_roles_have_different_colours_and_strangers_a_stable_one() -> None:
    assert len(set(ROLE_COLORS.values())) == len(ROLE_COLORS)
    assert role_color("generator") == "#0072B2"
    assert role_color("referee") == role_color("referee")
    assert role_color("referee").startswith("#")
