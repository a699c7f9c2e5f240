"""Addresses behind a DNS name, asked of a name server that the test runs itself."""

import socket
import threading
from contextlib import contextmanager

import dns.asyncresolver
import dns.message
import dns.rrset
import trio

from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.p2p.discovery import DnsAddress
from ponyswarm.p2p.dnsaddr import MAX_ADDRESSES, resolve

PEER = peer_id(SecretKey(bytes(32)).public)
OTHER = peer_id(SecretKey(b"o" * 32).public)


@contextmanager
def name_server(records):
    """Serves TXT records from a dict of name to texts; yields a resolver that asks it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(10)

        def serve():
            while True:
                try:
                    data, sender = sock.recvfrom(4096)
                except OSError:
                    return
                if not data:
                    return
                query = dns.message.from_wire(data)
                name = query.question[0].name
                reply = dns.message.make_response(query)
                texts = records.get(str(name).rstrip("."), ())
                if texts:
                    quoted = [f'"{text}"' for text in texts]
                    reply.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", *quoted))
                sock.sendto(reply.to_wire(max_size=4096), sender)

        thread = threading.Thread(target=serve)
        thread.start()
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = sock.getsockname()[1]
        try:
            yield resolver
        finally:
            sock.sendto(b"", sock.getsockname())  # Ends the reader.
            thread.join(10)


def found(records, host="swarm.example", peer=None):
    with name_server(records) as resolver:
        return trio.run(resolve, DnsAddress(host, peer), resolver)


def test_the_addresses_behind_a_name_are_found_and_others_passed_over():
    mine = f"/ip4/20.1.2.3/tcp/4001/p2p/{PEER}"
    texts = [
        f"dnsaddr={mine}",
        f"dnsaddr=/ip4/20.1.2.3/udp/4001/quic-v1/p2p/{PEER}",
        "dnsaddr=/ip4/20.1.2.3/tcp/4001",
        "v=spf1 -all",
        "dnsaddr=nonsense",
    ]
    assert found({"_dnsaddr.swarm.example": texts}) == (mine,)


def test_a_name_may_name_another_but_not_for_ever():
    deep = f"/ip4/20.1.2.3/tcp/4001/p2p/{PEER}"
    records = {
        "_dnsaddr.swarm.example": ["dnsaddr=/dnsaddr/eu.swarm.example"],
        "_dnsaddr.eu.swarm.example": [f"dnsaddr={deep}", "dnsaddr=/dnsaddr/swarm.example"],
    }
    assert found(records) == (deep,)
    records["_dnsaddr.eu.swarm.example"] = ["dnsaddr=/dnsaddr/it.swarm.example"]
    records["_dnsaddr.it.swarm.example"] = [f"dnsaddr={deep}"]
    assert found(records) == ()


def test_only_the_named_peer_counts():
    texts = [f"dnsaddr=/ip4/20.1.2.3/tcp/1/p2p/{one}" for one in (PEER, OTHER)]
    wanted = SecretKey(bytes(32)).public
    assert found({"_dnsaddr.swarm.example": texts}, peer=wanted) == (
        f"/ip4/20.1.2.3/tcp/1/p2p/{PEER}",
    )


def test_a_name_gives_no_more_than_a_few():
    keys = [peer_id(SecretKey(bytes([n]) * 32).public) for n in range(1, 30)]
    texts = [f"dnsaddr=/ip4/20.1.2.{n}/tcp/1/p2p/{key}" for n, key in enumerate(keys)]
    assert len(found({"_dnsaddr.swarm.example": texts})) == MAX_ADDRESSES


def test_an_unknown_name_has_no_addresses():
    assert found({}) == ()
