"""A small internet of network namespaces: subnets, home routers, and a slow, lossy middle.

Each subnet has a router in a namespace of its own, behind which nodes have namespaces of
theirs. Between the routers is a process of this module: it takes every packet from one
router's TUN device, waits, loses some, and hands it to another's. So delay and loss need
no kernel module, and a subnet can be cut off. A subnet may be a home: private addresses
behind a router that masquerades and lets nothing new in.

Everything is named after the process that made it; what a killed one left behind is
removed by the next. Nothing of it is connected to the real network.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

PREFIX = "psw"
_made = itertools.count()
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x1, 0x1000, 0x40000000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node runs: ``enter`` goes in front of its command."""

    namespace: str
    address: str

    @property
    def enter(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)


@dataclass(slots=True)
class Internet:
    """``subnets[i]`` are the places of one subnet, whose addresses outside are 20.(i+1).0.*."""

    subnets: list[list[Place]]
    middle: subprocess.Popen[str]

    def _tell(self, words: str) -> None:
        assert self.middle.stdin is not None
        self.middle.stdin.write(words + "\n")
        self.middle.stdin.flush()

    def weather(self, *, round_trip: float, loss: float) -> None:
        """Seconds there and back, and the share of packets that is lost, between subnets."""
        self._tell(f"weather {round_trip / 2} {loss}")

    def cut(self, subnet: int) -> None:
        self._tell(f"cut {subnet}")

    def join(self, subnet: int) -> None:
        self._tell(f"join {subnet}")


def missing() -> str | None:
    """Why there can be no internet here, in a word for a person; None when there can."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux alone"
    for command, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(command) is None:
            return f"{command!r} is missing: install {package}"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    name = f"{PREFIX}{os.getpid()}t"
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError:
        return "network namespaces are not permitted here"
    try:
        _ip("-n", name, "tuntap", "add", "dev", "t", "mode", "tun")
        _nft(name, "add table ip t; add chain ip t c { type nat hook postrouting priority 100; }")
    except subprocess.CalledProcessError:
        return "TUN devices or nftables are not permitted here"
    finally:
        _ip("netns", "del", name)
    return None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _nft(namespace: str, rules: str) -> None:
    _run("ip", "netns", "exec", namespace, "nft", rules)


def sweep() -> None:
    """Remove the namespaces of processes that live no more."""
    listed = subprocess.run(("ip", "netns", "list"), capture_output=True, text=True, check=False)
    for name in re.findall(rf"^({PREFIX}\d+\w*)", listed.stdout, re.MULTILINE):
        owner = int(re.findall(r"\d+", name)[0])
        if not os.path.exists(f"/proc/{owner}"):
            _remove(name)


def _remove(namespace: str) -> None:
    """End what runs in a namespace, and the namespace."""
    found = subprocess.run(
        ("ip", "netns", "pids", namespace), capture_output=True, text=True, check=False
    )
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)
    with contextlib.suppress(subprocess.CalledProcessError):
        _ip("netns", "del", namespace)


@contextmanager
def open_internet(subnets: Sequence[int], homes: Sequence[int] = ()) -> Iterator[Internet]:
    """``subnets`` are counts of places; those whose index is in ``homes`` are behind a router."""
    sweep()
    base = f"{PREFIX}{os.getpid()}i{next(_made)}"
    made: list[str] = []
    try:
        places = []
        for number, count in enumerate(subnets):
            places.append(_subnet(base, number, count, number in homes, made))
        routers = [f"{base}r{number}" for number in range(len(subnets))]
        middle = subprocess.Popen(
            [sys.executable, "-m", "bench.internet", *routers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert middle.stdout is not None
            if middle.stdout.readline().strip() != "ready":
                raise RuntimeError("the middle of the internet did not start")
            yield Internet(places, middle)
        finally:
            middle.kill()
            middle.wait()
            for pipe in (middle.stdin, middle.stdout):
                if pipe is not None:
                    pipe.close()
    finally:
        for namespace in reversed(made):
            _remove(namespace)


def _subnet(base: str, number: int, count: int, home: bool, made: list[str]) -> list[Place]:
    router = f"{base}r{number}"
    net = f"192.168.{number + 1}" if home else f"20.{number + 1}.0"
    _namespace(router, made)
    _ip("-n", router, "link", "add", "br0", "type", "bridge")
    _ip("-n", router, "addr", "add", f"{net}.1/24", "dev", "br0")
    _ip("-n", router, "link", "set", "br0", "up")
    _ip("-n", router, "tuntap", "add", "dev", "wan", "mode", "tun")
    if home:
        _ip("-n", router, "addr", "add", f"20.{number + 1}.0.1/32", "dev", "wan")
        _nft(
            router,
            "add table ip n;"
            "add chain ip n out { type nat hook postrouting priority 100; };"
            "add rule ip n out oifname wan masquerade;"
            "add chain ip n in { type filter hook input priority 0; };"
            "add rule ip n in iifname wan ct state new drop;"
            "add chain ip n through { type filter hook forward priority 0; };"
            "add rule ip n through iifname wan ct state new drop",
        )
    _ip("-n", router, "link", "set", "wan", "up")
    _ip("-n", router, "route", "add", "default", "dev", "wan")
    _run("ip", "netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    places = []
    for host in range(count):
        name = f"{base}n{number}x{host}"
        _namespace(name, made)
        address = f"{net}.{host + 2}"
        port = f"p{host}"
        _ip(
            "-n", router, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name
        )
        _ip("-n", router, "link", "set", port, "master", "br0", "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "route", "add", "default", "via", f"{net}.1")
        places.append(Place(name, address))
    return places


def _namespace(name: str, made: list[str]) -> None:
    _ip("netns", "add", name)
    made.append(name)
    _ip("-n", name, "link", "set", "lo", "up")


# The middle, in a process of its own


def _open_wan(namespace: str) -> int:
    """The other end of a router's TUN device, opened in its namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}", "rb") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    wan = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(wan, _TUNSETIFF, struct.pack("16sH22x", b"wan", _IFF_TUN | _IFF_NO_PI))
    return wan


def carry(namespaces: Sequence[str]) -> None:
    """Pass packets between routers until standard input ends."""
    wans = [_open_wan(namespace) for namespace in namespaces]
    number_of = {wan: number for number, wan in enumerate(wans)}
    delay, loss = 0.0, 0.0
    off: set[int] = set()
    chance = random.Random(7)
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    commands = b""
    print("ready", flush=True)
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([*wans, 0], [], [], pause)
        now = time.monotonic()
        for source in readable:
            if source == 0:
                data = os.read(0, 4096)
                if not data:
                    return
                *lines, commands = (commands + data).split(b"\n")
                for words in (line.decode().split() for line in lines):
                    if words[0] == "weather":
                        delay, loss = float(words[1]), float(words[2])
                    elif words[0] == "cut":
                        off.add(int(words[1]))
                    else:
                        off.discard(int(words[1]))
                continue
            for _ in range(64):
                try:
                    packet = os.read(source, 65536)
                except BlockingIOError:
                    break
                # IPv4 to 20.(subnet + 1).*; all else has no way from here.
                if len(packet) < 20 or packet[0] >> 4 != 4 or packet[16] != 20:
                    continue
                target = packet[17] - 1
                if not 0 <= target < len(wans) or chance.random() < loss:
                    continue
                if target in off or number_of[source] in off:
                    continue
                count += 1
                heapq.heappush(waiting, (now + delay, count, target, packet))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, target, packet = heapq.heappop(waiting)
            with contextlib.suppress(OSError):
                os.write(wans[target], packet)


if __name__ == "__main__":
    carry(sys.argv[1:])
