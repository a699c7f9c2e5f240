"""Addresses, the bootstrap list and the table of peers seen."""

import pytest

from ponyswarm import keys
from ponyswarm.errors import LocalError
from ponyswarm.keys import SecretKey
from ponyswarm.p2p.discovery import PeerTable, parse_address, parse_bootstrap, read_bootstrap

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


def test_bootstrap_list():
    one, two = f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}", f"/dns4/a.example/tcp/2/p2p/{PEER}"
    assert parse_bootstrap(f"# who\n\n{one}  # first\n  {two}\n{one}\n") == (one, two)
    assert parse_bootstrap("") == ()


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
