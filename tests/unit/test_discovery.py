"""Addresses, the bootstrap list and the table of peers seen."""

import pytest

from ponyswarm import keys
from ponyswarm.errors import LocalError
from ponyswarm.keys import SecretKey
from ponyswarm.p2p.discovery import (
    OtherTransport,
    is_dialable,
    parse_address,
    parse_bootstrap,
    parse_target,
    range_of,
    read_bootstrap,
)
from ponyswarm.p2p.table import PeerTable

KEY = SecretKey(bytes(32)).public
PEER = keys.peer_id(KEY)


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}",
        "/ip4/0.0.0.0/tcp/0",
        f"/ip6/2001:db8::1/tcp/4001/p2p/{PEER}",
        f"/dns4/node.example.org/tcp/4001/p2p/{PEER}",
        "/dns/localhost/tcp/65535",
    ],
)
def test_addresses_are_read_and_written(text):
    assert str(parse_address(text)) == text


def test_an_address_has_one_form():
    assert str(parse_address(" /ip6/2001:DB8:0::1/tcp/04001/ ")) == "/ip6/2001:db8::1/tcp/4001"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.7:4001",
        "/ip4/192.0.2/tcp/4001",
        "/ip4/2001:db8::1/tcp/4001",
        "/ip4/192.0.2.7/tcp/65536",
        "/ip4/192.0.2.7/udp/4001/quic-v1",
        "/ip4/192.0.2.7/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}/p2p-circuit",
        "/dns4/bad host/tcp/1",
        "/dns4/-/tcp/1",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(LocalError):
        parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
        "/dnsaddr/bootstrap.example.org",
        f"/dnsaddr/bootstrap.example.org/p2p/{PEER}",
    ],
)
def test_every_form_that_can_be_called_is_read_and_written(text):
    assert str(parse_target(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/192.0.2.7/tcp/4001/p2p-circuit/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/x",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
        "/dnsaddr/",
        "/dnsaddr/a b",
        "/dnsaddr/example.org/tcp/1",
    ],
)
def test_what_cannot_be_called_is_refused(text):
    with pytest.raises(LocalError):
        parse_target(text)


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/192.0.2.7/udp/4001/quic-v1/p2p/{PEER}",
        f"/dns4/a.example/tcp/443/wss/p2p/{PEER}",
        f"/ip6/2001:db8::1/tcp/443/tls/ws/p2p/{PEER}",
        f"/ip4/192.0.2.7/udp/4001/webrtc-direct/certhash/uEi/p2p/{PEER}",
    ],
)
def test_other_transports_are_known_and_passed_over(text):
    with pytest.raises(OtherTransport):
        parse_target(text)
    mine = f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}"
    assert parse_bootstrap(f"{text}\n{mine}\n") == (mine,)


def test_an_address_range_is_what_one_owner_has_many_of():
    def at(host):
        return range_of(f"{host}/p2p/{PEER}")

    assert at("/ip4/20.1.2.3/tcp/1") == at("/ip4/20.1.99.9/tcp/7") != at("/ip4/20.2.2.3/tcp/1")
    assert (
        at("/ip6/2a00:1::1/tcp/1") == at("/ip6/2a00:1:ffff::9/tcp/1") != at("/ip6/2a00:2::1/tcp/1")
    )
    assert at("/dns4/A.example/tcp/1") == at("/dns4/a.example/tcp/2")
    assert at("/ip4/127.0.0.1/tcp/1") != at("/ip4/127.0.0.1/tcp/2")
    relay = f"/ip4/20.1.2.3/tcp/1/p2p/{PEER}"
    assert range_of(f"{relay}/p2p-circuit/p2p/{PEER}") == at("/ip4/20.1.0.0/tcp/1")


@pytest.mark.parametrize(
    ("address", "from_", "good"),
    [
        ("/ip4/8.8.4.4/tcp/1", "/ip4/9.9.9.9/tcp/2", True),
        ("/ip4/192.168.1.5/tcp/1", "/ip4/9.9.9.9/tcp/2", False),
        ("/ip4/192.168.1.5/tcp/1", "/ip4/192.168.1.9/tcp/2", True),
        ("/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.9/tcp/2", False),
        ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2", True),
        ("/ip4/8.8.4.4/tcp/0", "/ip4/9.9.9.9/tcp/2", False),
        ("/ip4/224.0.0.1/tcp/1", "/ip4/9.9.9.9/tcp/2", False),
        ("/ip4/0.0.0.0/tcp/1", "/ip4/127.0.0.1/tcp/2", False),
        ("/ip4/169.254.1.1/tcp/1", "/ip4/169.254.1.2/tcp/2", False),
        ("/dns4/a.example/tcp/1", "/ip4/9.9.9.9/tcp/2", True),
        ("/dnsaddr/a.example", "/ip4/9.9.9.9/tcp/2", False),
        ("nonsense", "/ip4/9.9.9.9/tcp/2", False),
        ("/ip4/192.168.1.5/tcp/1", None, False),
    ],
)
def test_what_peers_tell_is_called_only_where_it_makes_sense(address, from_, good):
    assert is_dialable(address, from_=from_) is good


def test_bootstrap_list():
    one, two = f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}", f"/dns4/a.example/tcp/2/p2p/{PEER}"
    assert parse_bootstrap(f"# who\n\n{one}  # first\n  {two}\n{one}\n") == (one, two)
    assert parse_bootstrap("") == ()
    assert parse_bootstrap("/dnsaddr/a.example\n") == ("/dnsaddr/a.example",)


@pytest.mark.parametrize("line", ["nonsense", "/ip4/192.0.2.1/tcp/1"])
def test_a_bad_bootstrap_line_is_named(line):
    with pytest.raises(LocalError, match=r"peers\.txt, line 2"):
        parse_bootstrap(f"# comment\n{line}\n", "peers.txt")


def test_a_missing_bootstrap_file_is_empty(tmp_path):
    assert read_bootstrap(tmp_path / "none.txt") == ()


def address(number, port=1):
    peer = keys.peer_id(SecretKey(bytes([number]) * 32).public)
    return f"/ip4/192.0.2.{number}/tcp/{port}/p2p/{peer}"


def test_peer_table_keeps_the_best(tmp_path):
    table = PeerTable(tmp_path / "state" / "peers.json")
    for number in (1, 2, 3):
        table.reached(address(number), now=number)
    table.failed(address(3))
    table.failed("/ip4/192.0.2.99/tcp/1")
    assert table.addresses() == (address(2), address(1), address(3))
    table.save()
    assert PeerTable(tmp_path / "state" / "peers.json").addresses() == table.addresses()
    table.reached(address(3), now=9)
    assert table.addresses()[0] == address(3)


def test_one_peer_has_few_places():
    table = PeerTable()
    for port in range(1, 20):
        table.reached(address(1, port), now=port)
    assert table.addresses() == tuple(address(1, port) for port in (19, 18, 17, 16))


@pytest.mark.parametrize("text", ["", "[]", "null", '{"x": [1, 2]}', '{"a": 3}', "\x00"])
def test_a_damaged_table_is_no_table(tmp_path, text):
    path = tmp_path / "peers.json"
    path.write_text(text)
    assert PeerTable(path).addresses() == ()
