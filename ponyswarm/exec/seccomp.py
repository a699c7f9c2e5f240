"""The system-call filter of a sandbox: what no namespace takes away, refused here.

Built by libseccomp for this machine's architecture; calls of another architecture
kill. `sandbox` hands the program to bubblewrap by a descriptor.
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache

from ponyswarm.errors import InfraError

REMEDY = "sudo apt-get install libseccomp2"

# Refused with EPERM: reaching into other processes, the kernel's own machinery, mounts.
REFUSED = [
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "kcmp",
    "pidfd_getfd",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "keyctl",
    "add_key",
    "request_key",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "move_mount",
    "open_tree",
    "mount_setattr",
    "setns",
    "unshare",
    "swapon",
    "swapoff",
    "reboot",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "open_by_handle_at",
    "name_to_handle_at",
    "fanotify_init",
    "lookup_dcookie",
    "acct",
    "quotactl",
    "syslog",
    "iopl",
    "ioperm",
    "nfsservctl",
    "vhangup",
    "settimeofday",
    "clock_settime",
    "clock_adjtime",
    "adjtimex",
    "sethostname",
    "setdomainname",
    "migrate_pages",
    "move_pages",
]
CLONE_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000 | 0x04000000 | 0x08000000
# UNIX, IPv4, IPv6 and netlink (the C library asks it for addresses). Every other family is
# refused: vsock, for one, reaches a virtual machine's host past any network namespace.
SOCKET_FAMILIES = frozenset({1, 2, 10, 16})
TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing for the person at the terminal.


@lru_cache(maxsize=1)
def program() -> bytes:
    """The filter as BPF; `InfraError` when libseccomp is missing."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as fault:
        raise InfraError(f"libseccomp is missing ({fault}): install it with '{REMEDY}'") from fault
    filter_ = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for name in REFUSED:
        try:
            filter_.add_rule(refuse, name)
        except (OSError, ValueError, RuntimeError):
            continue  # A call that this architecture or this libseccomp does not know.
    # The flags of clone3 are behind a pointer; without it the C library uses clone.
    filter_.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    bit = 1
    while bit <= CLONE_NAMESPACES:
        if CLONE_NAMESPACES & bit:
            filter_.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, bit, bit))
        bit <<= 1
    unknown = pyseccomp.ERRNO(errno.EAFNOSUPPORT)
    for call in ("socket", "socketpair"):
        above = max(SOCKET_FAMILIES) + 1
        for family in sorted(set(range(above)) - SOCKET_FAMILIES):
            filter_.add_rule(unknown, call, pyseccomp.Arg(0, pyseccomp.EQ, family))
        filter_.add_rule(unknown, call, pyseccomp.Arg(0, pyseccomp.GE, above))
    for request in TERMINAL_INPUT:
        argument = pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request)
        filter_.add_rule(refuse, "ioctl", argument)
    descriptor = os.memfd_create("ponyswarm-seccomp")
    with os.fdopen(descriptor, "w+b") as file:
        filter_.export_bpf(file)
        file.seek(0)
        return file.read()
