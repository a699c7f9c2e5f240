"""What an entry is to its feed: one pure function."""

from __future__ import annotations

from authors import NOW, Author, digest

from ponyswarm.codec import decode_kept
from ponyswarm.ledger.chain import (
    FUTURE_MS,
    Accept,
    Completed,
    Diverges,
    Duplicate,
    Early,
    Forked,
    Gap,
    Head,
    Refused,
    judge,
)
from ponyswarm.messages import Entry, Withdraw

PROJECT = digest("project")
LATER = NOW + 10_000


def signed(author: Author, text: str, time: int | None = None) -> Entry:
    return author.sign(Withdraw(job=digest(text)), PROJECT, time)


def head(entry: Entry) -> Head:
    return Head(entry.header.seq, entry.id, entry.header.time)


def test_the_first_entry_of_an_unknown_feed_is_accepted():
    assert judge(signed(Author(2), "a"), None, None, LATER) == Accept()


def test_the_next_entry_is_accepted():
    author = Author(2)
    first, second = signed(author, "a"), signed(author, "b")
    assert judge(second, head(first), None, LATER) == Accept()


def test_an_entry_of_the_same_time_is_accepted():
    author = Author(2)
    first, second = signed(author, "a", NOW), signed(author, "b", NOW)
    assert judge(second, head(first), None, LATER) == Accept()


def test_an_entry_that_is_held_is_a_duplicate():
    author = Author(2)
    first, second = signed(author, "a"), signed(author, "b")
    assert judge(first, head(second), first, LATER) == Duplicate()


def test_an_entry_beyond_the_next_is_a_gap():
    author = Author(2)
    first, _, third = signed(author, "a"), signed(author, "b"), signed(author, "c")
    assert judge(third, head(first), None, LATER) == Gap(1)
    assert judge(third, None, None, LATER) == Gap(0)


def test_an_entry_that_is_held_bare_is_completed_by_the_whole_one_and_not_the_reverse():
    whole = Author(2).result(PROJECT, digest("job"), digest("cell"))
    bare = decode_kept(whole.frame[:224])
    assert judge(whole, head(whole), bare, LATER) == Completed()
    assert judge(bare, head(whole), whole, LATER) == Duplicate()
    assert judge(bare, head(whole), bare, LATER) == Duplicate()


def test_another_entry_at_a_held_place_is_a_fork_wherever_it_is():
    author = Author(2)
    first = signed(author, "a")
    twin = author.branch()
    second, other = signed(author, "b"), signed(twin, "other")
    third = signed(author, "c")
    assert judge(other, head(second), second, LATER) == Forked(1)
    assert judge(other, head(third), second, LATER) == Forked(1)
    assert judge(signed(Author(2), "z"), head(third), first, LATER) == Forked(0)


def test_the_next_of_another_history_diverges():
    author = Author(2)
    signed(author, "a")
    twin = author.branch()
    second = signed(author, "b")
    signed(twin, "other")
    assert judge(signed(twin, "third"), head(second), None, LATER) == Diverges(1)


def test_an_entry_of_the_future_is_early_until_its_time_comes():
    entry = signed(Author(2), "a", NOW + FUTURE_MS + 1)
    assert judge(entry, None, None, NOW) == Early()
    assert judge(entry, None, None, NOW + 1) == Accept()


def test_a_fork_in_the_future_is_a_fork_already():
    author = Author(2)
    twin = author.branch()
    first = signed(author, "a")
    other = signed(twin, "b", NOW + 10 * FUTURE_MS)
    assert judge(other, head(first), first, NOW) == Forked(0)


def test_time_that_falls_is_refused():
    author = Author(2)
    first = signed(author, "a", NOW)
    assert judge(signed(author, "b", NOW - 1), head(first), None, LATER) == Refused("time-falls")
