"""How much gossip of whom is taken and passed on, over one hop and over several."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ponyswarm.p2p.hardening.limits import NetworkLimits
from ponyswarm.p2p.hardening.quotas import Quotas

LIMITS = NetworkLimits(
    author_rate=5,
    author_burst=10,
    strangers_rate=20,
    strangers_burst=40,
    share_rate=2,
    share_burst=4,
)
TOPIC, OTHER = "/p/one", "/p/other"
MAINTAINER = b"maintainer"


class Hop:
    """One honest node: what it refused, and what it would pass on."""

    def __init__(self, name: bytes = b"", limits: NetworkLimits = LIMITS) -> None:
        self.name = name
        self.refused: Counter[str] = Counter()
        self._quotas = Quotas(limits, lambda topic, author: author == MAINTAINER)

    def hears(
        self, author: bytes, forwarder: bytes, now: float = 0.0, *, topic: str = TOPIC
    ) -> bool:
        reason = self._quotas.refusal(topic, author, forwarder, now)
        if reason is None:
            self._quotas.spend(topic, author, forwarder, now)
            return True
        self.refused[reason] += 1
        return False


def test_an_author_has_a_quota_whoever_brings_its_messages() -> None:
    hop = Hop()
    heard = [hop.hears(MAINTAINER, forwarder) for forwarder in (b"a", b"b") * 10]
    assert heard == [True] * 10 + [False] * 10
    assert hop.refused == {"author-quota": 10}
    assert [hop.hears(MAINTAINER, b"a", 1.0) for _ in range(6)] == [True] * 5 + [False]


def test_who_brings_its_own_flood_pays_for_what_is_refused_as_well() -> None:
    hop = Hop()
    for number in range(60):
        hop.hears(b"key %d" % number, b"another")  # The strangers' bucket is as low as it gets.
    for _ in range(10):
        hop.hears(b"flooder", b"flooder")
    assert hop.refused["author-quota"] == 0
    assert not hop.hears(b"flooder", b"flooder")
    assert hop.refused["author-quota"] == 1


def test_nobody_uses_up_anothers_quota_in_its_name() -> None:
    """Whatever was asked about and not spent, as its signature did not hold, costs nothing."""
    quotas = Quotas(LIMITS, lambda topic, author: True)
    for _ in range(100):
        assert quotas.refusal(TOPIC, MAINTAINER, b"forger", 0.0) is None


def test_a_key_for_each_message_gets_no_more_than_one_stranger_would() -> None:
    hop = Hop()
    heard = sum(hop.hears(b"key %d" % number, b"flooder") for number in range(1000))
    # The half that is free to all, and the flooder's own share of it.
    assert heard <= 20 + 4
    assert hop.refused == {"strangers-quota": 1000 - heard}


def test_whom_the_project_names_is_heard_through_any_flood() -> None:
    hop = Hop()
    for number in range(1000):
        hop.hears(b"key %d" % number, b"flooder %d" % (number % 50))
    assert not hop.hears(b"one more stranger", b"honest")
    assert all(hop.hears(MAINTAINER, b"flooder 1") for _ in range(10))


def test_a_flood_leaves_room_for_strangers_that_come_another_way() -> None:
    hop = Hop()
    heard = 0
    for tick in range(100):
        now = tick / 10
        for number in range(30):
            hop.hears(b"key %d %d" % (tick, number), b"flooder", now)
        heard += hop.hears(b"volunteer %d" % tick, b"honest", now) if tick % 10 == 0 else 0
    assert heard == 10


def test_a_flood_in_one_project_leaves_room_in_another_and_all_floods_have_one_sum() -> None:
    hop = Hop()
    for number in range(100):
        hop.hears(b"key %d" % number, b"flooder %d" % number)
    assert hop.hears(b"a volunteer", b"honest", topic=OTHER)
    heard = sum(
        hop.hears(b"key", b"flooder %d" % n, topic=f"/p/{t}") for t in range(50) for n in range(50)
    )
    assert heard < 2 * LIMITS.strangers_burst


@given(
    st.lists(
        st.tuples(
            st.floats(0, 0.5),
            st.integers(0, 10_000),
            st.integers(0, 20),
            st.integers(0, 3),
        ),
        max_size=400,
    )
)
def test_strangers_have_one_sum_a_topic_whatever_they_do(
    said: list[tuple[float, int, int, int]],
) -> None:
    hop = Hop()
    heard: Counter[int] = Counter()
    now = 0.0
    for pause, author, forwarder, topic in said:
        now += pause
        name = b"key %d" % author
        heard[topic] += hop.hears(name, b"peer %d" % forwarder, now, topic=f"/p/{topic}")
    most = LIMITS.strangers_burst + LIMITS.strangers_rate * now + 1e-6
    assert all(count <= most for count in heard.values())
    assert heard.total() <= 2 * most


def test_a_flood_is_cut_at_its_first_honest_node_and_the_last_still_hears_the_maintainer() -> None:
    """Forty strangers around the first of four honest nodes in a row, each within its quota."""
    first, *others = line = [Hop(b"hop %d" % number) for number in range(4)]
    passed: Counter[bytes] = Counter()
    heard = sent = 0
    for tick in range(200):
        now = tick / 20
        said = [(b"stranger %d" % number, b"stranger %d" % number) for number in range(40)]
        if tick % 5 == 0:
            said.append((MAINTAINER, b"maintainer's node"))
            sent += 1
        for author, forwarder in said:
            if not first.hears(author, forwarder, now):
                continue
            passed[first.name] += 1
            giver = first
            for hop in others:
                if not hop.hears(author, giver.name, now):
                    break
                passed[hop.name] += 1
                giver = hop
            else:
                heard += author == MAINTAINER
    assert heard == sent
    seconds = 200 / 20
    most = LIMITS.strangers_burst + LIMITS.strangers_rate * seconds + sent
    assert 0 < passed[first.name] <= most < 40 * 200 / 5
    # Behind the first nobody refuses much: what it passes on is what the next ones take.
    assert passed[line[-1].name] >= passed[first.name] / 2
