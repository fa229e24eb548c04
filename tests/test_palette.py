"""Every role has one colour, told apart from the others."""

from __future__ import annotations

import pytest

from gradlab.palette import ROLE_COLORS, role_color


def test_roles_have_different_colours() -> None:
    assert len(set(ROLE_COLORS.values())) == len(ROLE_COLORS)
    assert role_color("generator", ()) == "#0072B2"


@pytest.mark.parametrize(
    ("role", "crc", "color"),
    [
        ("referee", 3591353154, "#56B4E9"),
        ("critic", 3387095025, "#7A7A7A"),
        ("debater", 800969300, "#E69F00"),
    ],
)
def test_strangers_have_the_colour_of_their_name_in_every_run(
    role: str, crc: int, color: str
) -> None:
    """CRC-32 of the name modulo 7; the hash of a str would be another in every process."""
    assert crc_32(role.encode()) == crc
    order = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A7A7A"]
    assert order[crc % 7] == color
    assert role_color(role, ("generator", role)) == color


def crc_32(data: bytes) -> int:
    """The checksum bit by bit, as it is defined."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (0xEDB88320 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


def test_no_two_roles_of_a_run_have_the_same_colour() -> None:
    """Ten debaters of other names, some of which stand for the same colour."""
    strangers = [f"debater_{number}" for number in range(10)]
    order = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A7A7A"]
    by_name = [order[crc_32(role.encode()) % 7] for role in strangers]
    assert len(set(by_name)) < len(by_name)
    for roles in (strangers, ["generator", *strangers, "worker"], strangers[::-1]):
        colors = {role: role_color(role, roles) for role in roles}
        assert len(set(colors.values())) == len(roles)
        assert {colors[role] for role in roles if role in ROLE_COLORS} == {
            ROLE_COLORS[role] for role in roles if role in ROLE_COLORS
        }
    # Who is alone with a colour keeps it: that of all other runs.
    alone = [
        role for role, color in zip(strangers, by_name, strict=True) if by_name.count(color) == 1
    ]
    assert all(role_color(role, strangers) == role_color(role, ()) for role in alone)
    # The order in which they speak changes nothing.
    assert role_color("debater_3", strangers) == role_color("debater_3", strangers[::-1])
