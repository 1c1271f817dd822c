"""What a bench promises, said beside what it reached."""

from __future__ import annotations

_ABSURD = 2
"""A busy machine moves figures by a fifth and more, so a target that is missed is printed, not raised;
what is off by a factor of two is broken."""


def at_most(name: str, reached: float, target: float, unit: str = "") -> bool:
    """Say whether it was met; False when it is absurd."""
    _say(name, reached, f"target at most {target:g}{unit}", met=reached <= target, unit=unit)
    return reached <= target * _ABSURD


def at_least(name: str, reached: float, target: float, unit: str = "") -> bool:
    """Say whether it was met; False when it is absurd."""
    _say(name, reached, f"target at least {target:g}{unit}", met=reached >= target, unit=unit)
    return reached >= target / _ABSURD


def _say(name: str, reached: float, target: str, *, met: bool, unit: str) -> None:
    print(f"{name}: {reached:.2f}{unit}, {target}: {'met' if met else 'MISSED'}")
