"""How much is heard of the edges of one root key."""

from infra.nats.edge_ears import Allowance


def test_a_new_one_is_full_and_is_given_out_in_halves() -> None:
    allowance = Allowance(4, 0.0, 10)

    assert (allowance.take(), allowance.take(), allowance.take()) == (110, 110, 0)


def test_it_fills_with_time_and_with_the_edges_that_there_are() -> None:
    allowance = Allowance(4, 0.0, 1)
    while allowance.take():
        pass
    allowance.fill(0.25, 1, 0)

    assert allowance.take() == 52  # a quarter of 200 + 2 x 4 x 1

    allowance.fill(0.5, 100, 0)

    assert allowance.take() == 200  # it is given out up to 100 + 100; a quarter of 200 + 2 x 4 x 100 is 250


def test_each_change_lets_every_edge_answer() -> None:
    allowance = Allowance(4, 0.0, 50)
    while allowance.take():
        pass
    allowance.fill(0.0, 50, 2)

    assert allowance.take() == 100


def test_it_never_holds_more_than_its_fill() -> None:
    allowance = Allowance(4, 0.0, 10)
    allowance.fill(3_600.0, 10, 1_000)
    allowance.give_back(1_000)

    assert sum(iter(allowance.take, 0)) == 220
