"""Dicts of bounded size: which entries each of them drops."""

from __future__ import annotations

from keyledger_language.bounded_dicts import BoundedCache, NewestDict, TwoGenerations

# -- entries that can be computed again


def test_a_cache_is_full_with_its_last_entry_and_empty_before_one_more() -> None:
    cache = BoundedCache[str, int](3)
    for number, name in enumerate("abc"):
        cache.put(name, number)

    assert [cache.get(name) for name in "abc"] == [0, 1, 2]

    cache.put("d", 3)

    assert [cache.get(name) for name in "abcd"] == [None, None, None, 3]


def test_a_full_cache_takes_another_value_for_what_it_has() -> None:
    cache = BoundedCache[str, int](2)
    cache.put("a", 1)
    cache.put("b", 2)

    cache.put("a", 3)

    assert (cache.get("a"), cache.get("b")) == (3, 2)


def test_a_cache_that_was_cleared_goes_on() -> None:
    cache = BoundedCache[str, int](2)
    get = cache.get
    cache.put("a", 1)

    cache.clear()
    cache.put("b", 2)

    assert (get("a"), get("b")) == (None, 2)

    cache.drop("b")
    cache.drop("c")

    assert get("b") is None


# -- two generations


def test_the_newest_are_kept_and_never_more_than_twice_as_many() -> None:
    entries = TwoGenerations[int, str](10)
    for number in range(100):
        entries.put(number, str(number))

        assert len(entries) <= 20
        assert all(entries.get(one) == str(one) for one in range(max(0, number - 9), number + 1))

    assert sorted(entries) == list(range(80, 100))


def test_one_more_than_two_generations_drops_the_older_one() -> None:
    entries = TwoGenerations[int, None](2)
    for number in range(3):
        entries.put(number, None)

    assert not entries.full

    entries.put(3, None)

    assert (entries.full, sorted(entries)) == (True, [0, 1, 2, 3])

    entries.put(4, None)

    assert sorted(entries) == [2, 3, 4]
    assert 4 in entries
    assert 1 not in entries


def test_what_is_renewed_or_written_again_outlives_what_came_with_it() -> None:
    entries = TwoGenerations[str, int](2)
    for name in "abcd":
        entries.put(name, 1)

    assert entries.renew("a") == 1
    entries.put("b", 2)
    entries.put("e", 1)

    assert sorted(entries) == ["a", "b", "e"]
    assert (entries.renew("b"), entries.renew("c")) == (2, None)


def test_a_value_may_be_none_or_zero_in_both_generations() -> None:
    entries = TwoGenerations[str, int | None](1)
    entries.put("a", 0)
    entries.put("b", None)

    assert (entries.get("a"), entries.get("b"), entries.renew("b")) == (0, None, None)
    assert "a" in entries
    assert "b" in entries


def test_each_entry_is_counted_once() -> None:
    entries = TwoGenerations[str, int](2)
    for name in "abca":
        entries.put(name, 1)

    assert (len(entries), sorted(entries)) == (3, ["a", "b", "c"])


def test_dropped_and_cleared_entries_are_gone() -> None:
    entries = TwoGenerations[str, int](1)
    entries.put("a", 1)
    entries.put("b", 1)
    entries.drop("a")
    entries.drop("c")

    assert sorted(entries) == ["b"]

    entries.clear()

    assert len(entries) == 0


# -- the newest


def test_the_oldest_goes_when_one_more_comes() -> None:
    newest = NewestDict[str, int](3)
    for number, name in enumerate("abc"):
        newest[name] = number

    assert list(newest) == ["a", "b", "c"]

    newest["d"] = 3

    assert list(newest) == ["b", "c", "d"]


def test_another_value_for_what_is_there_pushes_nothing_out_and_keeps_its_place() -> None:
    newest = NewestDict[str, int](2)
    newest["a"], newest["b"] = 1, 2

    newest["a"] = 3

    assert newest == {"a": 3, "b": 2}

    newest["c"] = 4

    assert newest == {"b": 2, "c": 4}
