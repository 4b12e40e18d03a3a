"""What the power says, and which counts it refuses."""

import pytest

from crosscoders.bootstrap import wilson_interval
from crosscoders.diffing.verdicts import Power, PowerAtRate, power_lines

FOUND = Power(
    rates=(
        PowerAtRate(rate=0.02, n_planted=16, n_recovered=16, n_specific=15),
        PowerAtRate(rate=0.001, n_planted=16, n_recovered=9, n_specific=5),
    ),
    known_direction_specific=1,
    known_direction_planted=32,
    strength=0.25,
)


def test_the_sentence_gives_the_share_of_all_plants_at_each_rate() -> None:
    assert FOUND.sentence() == "power 0.94 at 2%, 0.31 at 0.1%"


def test_the_interval_is_wilsons() -> None:
    assert FOUND.rates[1].interval == wilson_interval(5, 16)


def test_the_lines_hold_every_count() -> None:
    first, frequent, rare, known = power_lines(FOUND)
    assert "0.25" in first
    assert "15 of 16" in frequent
    assert "5 of 16" in rare
    assert "9 have a latent" in rare
    assert "1 of 32 wrongly" in known


def test_plants_in_known_directions_alone_measure_no_power() -> None:
    known = Power(rates=(), known_direction_specific=0, known_direction_planted=8, strength=0.2)
    assert known.sentence().startswith("power not measured")
    assert len(power_lines(known)) == 2


@pytest.mark.parametrize(
    "counts", [(0, 0, 0), (16, 17, 3), (16, 3, 4), (16, 3, -1)], ids=["none", "found", "called", "negative"]
)
def test_counts_that_make_no_sense_are_refused(counts: tuple[int, int, int]) -> None:
    planted, recovered, specific = counts
    at = PowerAtRate(rate=0.1, n_planted=planted, n_recovered=recovered, n_specific=specific)
    with pytest.raises(ValueError, match="n_planted above 0"):
        Power(rates=(at,), known_direction_specific=0, known_direction_planted=0, strength=0.2)
