"""Attempts to get out of the sandbox; this file runs *inside* it, as a job's test suite.

Each attempt passes when it was stopped, and names the layer that stops it. What the host
prepared for it (a secret, a listener, a process) comes by environment variables.

Those that the filter stops are run a second time without it (``ESCAPE_NO_FILTER``): then
another layer must stop them, or they are in `ALONE`, with the reason why that is all right.
"""

import ctypes
import errno
import fcntl
import os
import platform
import signal
import socket
import stat
import struct
import unittest

LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "x86_64": {
        "ptrace": 101, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
        "unshare": 272, "clone": 56, "clone3": 435, "setns": 308, "keyctl": 250, "add_key": 248,
        "request_key": 249, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "io_uring_setup": 425, "process_vm_readv": 310, "pidfd_getfd": 438, "reboot": 169,
        "kexec_load": 246, "init_module": 175, "finit_module": 313, "delete_module": 176,
        "swapon": 167, "acct": 163, "quotactl": 179, "iopl": 172, "ioperm": 173,
        "sethostname": 170, "clock_settime": 227, "settimeofday": 164, "name_to_handle_at": 303,
        "open_by_handle_at": 304, "syslog": 103, "move_mount": 429, "open_tree": 428,
        "fsopen": 430, "mount_setattr": 442, "fanotify_init": 300,
    },
    "aarch64": {
        "ptrace": 117, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
        "unshare": 97, "clone": 220, "clone3": 435, "setns": 268, "keyctl": 219, "add_key": 217,
        "request_key": 218, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "io_uring_setup": 425, "process_vm_readv": 270, "pidfd_getfd": 438, "reboot": 142,
        "kexec_load": 104, "init_module": 105, "finit_module": 273, "delete_module": 106,
        "swapon": 224, "acct": 89, "quotactl": 60, "sethostname": 161, "clock_settime": 112,
        "settimeofday": 170, "name_to_handle_at": 264, "open_by_handle_at": 265, "syslog": 116,
        "move_mount": 429, "open_tree": 428, "fsopen": 430, "mount_setattr": 442,
        "fanotify_init": 262,
    },
}  # fmt: skip

# Capabilities, namespaces and the filter would each refuse; the filter does it first.
FILTER = "seccomp"
MOUNTS = "mount namespace"
READ_ONLY = "read-only mounts"
NETWORK = "network namespace"
PROCESSES = "process namespace"
PRIVILEGES = "no privileges"


# What the filter alone takes away from a job without capabilities. None of it reaches past
# the job's own processes by itself: it is taken because it is where kernels had their flaws.
ALONE = {
    "call_ptrace", "call_process_vm_readv", "call_pidfd_getfd", "call_clone3", "call_keyctl",
    "call_add_key", "call_request_key", "call_userfaultfd", "call_io_uring_setup",
    "call_perf_event_open", "call_bpf", "call_name_to_handle_at",
}  # fmt: skip
NO_FILTER = bool(os.environ.get("ESCAPE_NO_FILTER"))
if NO_FILTER:
    # Virtual machines have vsock, and it knows no network namespaces.
    ALONE |= {"socket_vsock", "open_a_socket_of_any_other_family"}
    if os.environ["ESCAPE_NO_FILTER"] == "root":
        # bubblewrap forbids further user namespaces only from within one of its own, which
        # a node of root's does without: its jobs have an id that root alone can give them.
        ALONE |= {"call_unshare", "clone_into_a_user_namespace"}


class Escapes(unittest.TestCase):
    """Filled below: one test an attempt."""


def attempt(layer, function):
    """Add an attempt; it is stopped when it raises an OSError, and escaped when it returns."""
    if NO_FILTER and (layer != FILTER or function.__name__ in ALONE):
        return function

    def test(self):
        try:
            got = function()
        except OSError:
            return
        self.fail(f"escaped past the {layer}: {got!r}")

    setattr(Escapes, "test_" + function.__name__, test)
    return function


def stopped_by(layer):
    return lambda function: attempt(layer, function)


def syscall(name, *arguments):
    """The call by its number, past any wrapper; OSError when the kernel refuses."""
    number = NUMBERS[platform.machine()].get(name)
    if number is None:
        raise OSError(errno.ENOSYS, name)
    ctypes.set_errno(0)
    result = LIBC.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def pointer(data):
    buffer = ctypes.create_string_buffer(data)
    POINTERS.append(buffer)
    return ctypes.addressof(buffer)


POINTERS = []


def calls(layer, name, *arguments):
    def call():
        try:
            return syscall(name, *arguments)
        except OSError as refused:
            if refused.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS) or NO_FILTER:
                raise
            # The kernel took the call up and only disliked what was said: nothing stops it.
            return refused

    call.__name__ = "call_" + name
    attempt(layer, call)


# --- files ---------------------------------------------------------------------------------


def reads(name, path, layer=MOUNTS):
    def read():
        with open(path, "rb") as file:
            return file.read(10)

    read.__name__ = "read_" + name
    attempt(layer, read)


def writes(name, path, layer=READ_ONLY):
    def write():
        with open(path, "ab") as file:
            file.write(b"x")
            return path

    write.__name__ = "write_" + name
    attempt(layer, write)


reads("the_nodes_key", os.environ["ESCAPE_SECRET"])
reads("shadow", "/etc/shadow")
reads("machine_id", "/etc/machine-id")
reads("kernel_log", "/dev/kmsg")
reads("kernel_memory", "/dev/mem")
reads("kcore", "/proc/kcore", PRIVILEGES)
reads("disk", "/dev/vda")
reads("first_disk", "/dev/sda")
reads("sudoers", "/etc/sudoers")
reads("docker_socket", "/var/run/docker.sock")
writes("system_program", "/usr/bin/env")
writes("system_library", "/usr/lib/ponyswarm-escape.so")
writes("preload", "/etc/ld.so.preload")
writes("passwd", "/etc/passwd")
writes("crontab", "/var/spool/cron/root", MOUNTS)
writes("interpreter", os.path.realpath(os.path.join(os.__file__, "..", "sitecustomize.py")))
writes("environment", "/env/bin/python-escape")
writes("environment_config", "/env/pyvenv.cfg")
writes("source_original", "/source/test_it.py")
writes("core_pattern", "/proc/sys/kernel/core_pattern", PRIVILEGES)
writes("hostname", "/proc/sys/kernel/hostname", PRIVILEGES)
writes("sysrq", "/proc/sysrq-trigger", PRIVILEGES)
writes("init_program", "/proc/1/exe", READ_ONLY)
writes("cgroup", "/sys/fs/cgroup/cgroup.procs", MOUNTS)
writes("modprobe", "/proc/sys/kernel/modprobe", PRIVILEGES)


writes("its_own_first_process", "/proc/1/mem", PRIVILEGES)
writes("trigger_of_modules", "/proc/sys/kernel/modules_disabled", PRIVILEGES)
writes("address_randomness", "/proc/sys/kernel/randomize_va_space", PRIVILEGES)
writes("reporter", "/project/report/_ponyswarm_channel.py")
reads("addresses_of_the_kernel", "/proc/kpagecount", PRIVILEGES)


@stopped_by(MOUNTS)
def find_a_device_of_the_machine():
    known = {"console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr"}
    known |= {"stdin", "stdout", "tty", "urandom", "zero"}
    strange = set(os.listdir("/dev")) - known
    if strange:
        return strange
    raise OSError("only those that hold nothing")


@stopped_by(MOUNTS)
def find_a_socket_of_the_system():
    for folder in ("/run", "/var/run", "/tmp", "/services"):
        for top, folders, files in os.walk(folder):
            for name in folders + files:
                if stat.S_ISSOCK(os.lstat(os.path.join(top, name)).st_mode):
                    return top, name
    raise OSError("none")


@stopped_by(MOUNTS)
def find_what_others_left_in_shared_folders():
    left = [os.listdir(folder) for folder in ("/tmp", "/dev/shm")]
    if any(left):
        return left
    raise OSError("nothing")


@stopped_by(PRIVILEGES)
def run_first_of_all():
    os.nice(-5)


@stopped_by(PRIVILEGES)
def make_a_set_uid_program_of_root():
    with open("/tmp/root", "w") as file:
        os.fchmod(file.fileno(), 0o4755)
        os.fchown(file.fileno(), 0, 0)


@stopped_by(MOUNTS)
def list_the_home_of_the_node():
    return os.listdir(os.path.dirname(os.environ["ESCAPE_SECRET"]))


@stopped_by(MOUNTS)
def follow_a_symlink_out():
    os.symlink(os.environ["ESCAPE_SECRET"], "/tmp/link")
    with open("/tmp/link") as file:
        return file.read()


@stopped_by(READ_ONLY)
def hard_link_a_system_program():
    os.link("/usr/bin/env", "/tmp/env")


@stopped_by(MOUNTS)
def walk_out_by_dots():
    with open("/project/src/../../../../../../.." + os.environ["ESCAPE_SECRET"]) as file:
        return file.read()


@stopped_by(MOUNTS)
def reach_the_hosts_root_by_proc():
    with open("/proc/1/root" + os.environ["ESCAPE_SECRET"]) as file:
        return file.read()


@stopped_by(PRIVILEGES)
def make_a_device():
    os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0))


@stopped_by(PRIVILEGES)
def be_spared_by_the_memory_killer():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


# --- who we are ------------------------------------------------------------------------------


@stopped_by(PRIVILEGES)
def become_root():
    os.setuid(0)


@stopped_by(PRIVILEGES)
def become_roots_group():
    os.setgroups([0])


@stopped_by(PRIVILEGES)
def own_a_system_file():
    os.chown("/usr/bin/env", os.getuid(), os.getgid())


@stopped_by(PRIVILEGES)
def keep_capabilities():
    with open("/proc/self/status") as file:
        facts = dict(line.split(":", 1) for line in file if ":" in line)
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        if int(facts[name], 16):
            return name
    raise OSError("none")


@stopped_by(PRIVILEGES)
def gain_by_a_set_uid_program():
    with open("/proc/self/status") as file:
        facts = dict(line.split(":", 1) for line in file if ":" in line)
    if facts["NoNewPrivs"].strip() != "1":
        return facts["NoNewPrivs"]
    raise OSError("no new privileges")


@stopped_by(PRIVILEGES)
def raise_its_own_limits():
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (hard + 1000, hard + 1000))
    except ValueError as refused:
        raise OSError(str(refused)) from refused


# --- processes -------------------------------------------------------------------------------


@stopped_by(PROCESSES)
def signal_the_node():
    os.kill(int(os.environ["ESCAPE_PID"]), 0)


@stopped_by(PROCESSES)
def see_the_nodes_processes():
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if max(pids) >= 200:
        return pids
    raise OSError("only ours")


@stopped_by(PROCESSES)
def find_secrets_in_environments():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if b"ESCAPE_HOST_ONLY" in file.read():
                    return pid
        except OSError:
            continue
    raise OSError("none")


calls(FILTER, "ptrace", 0, 0, 0, 0)
calls(FILTER, "process_vm_readv", 1, 0, 0, 0, 0, 0)
calls(FILTER, "pidfd_getfd", 0, 0, 0)

# --- the kernel's machinery ------------------------------------------------------------------

CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET = 0x10000000, 0x00020000, 0x40000000
calls(FILTER, "mount", pointer(b"none"), pointer(b"/tmp"), pointer(b"tmpfs"), 0, 0)
calls(FILTER, "umount2", pointer(b"/usr"), 0)
calls(FILTER, "pivot_root", pointer(b"/tmp"), pointer(b"/tmp"))
calls(FILTER, "chroot", pointer(b"/tmp"))
calls(FILTER, "unshare", CLONE_NEWUSER)
calls(FILTER, "setns", 0, 0)
calls(FILTER, "clone3", 0, 0)
calls(FILTER, "move_mount", -100, pointer(b"/tmp"), -100, pointer(b"/usr"), 0)
calls(FILTER, "open_tree", -100, pointer(b"/"), 1)
calls(FILTER, "fsopen", pointer(b"tmpfs"), 0)
calls(FILTER, "keyctl", 0, -3, 0)
calls(FILTER, "add_key", pointer(b"user"), pointer(b"x"), pointer(b"y"), 1, -3)
calls(FILTER, "request_key", pointer(b"user"), pointer(b"x"), 0, -3)
calls(FILTER, "bpf", 0, pointer(b"\0" * 64), 64)
calls(FILTER, "perf_event_open", pointer(b"\0" * 120), 0, -1, -1, 0)
calls(FILTER, "userfaultfd", 1)
calls(FILTER, "io_uring_setup", 1, pointer(b"\0" * 120))
calls(FILTER, "name_to_handle_at", -100, pointer(b"/"), pointer(b"\0" * 200), pointer(b"\0" * 8), 0)
calls(FILTER, "open_by_handle_at", -100, pointer(b"\0" * 200), 0)
calls(FILTER, "reboot", 0xFEE1DEAD, 672274793, 0)
calls(FILTER, "kexec_load", 0, 0, 0, 0)
calls(FILTER, "init_module", 0, 0, pointer(b""))
calls(FILTER, "finit_module", 0, pointer(b""), 0)
calls(FILTER, "delete_module", pointer(b"x"), 0)
calls(FILTER, "swapon", pointer(b"/tmp/x"), 0)
calls(FILTER, "acct", 0)
calls(FILTER, "iopl", 3)
calls(FILTER, "sethostname", pointer(b"escape"), 6)
calls(FILTER, "clock_settime", 0, pointer(b"\0" * 16))
calls(FILTER, "syslog", 3, pointer(b"\0" * 64), 64)
calls(FILTER, "fanotify_init", 0, 0)


@stopped_by(FILTER)
def clone_into_a_user_namespace():
    child = syscall("clone", CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


@stopped_by(FILTER)
def type_into_the_terminal():
    descriptor = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(descriptor, 0x5412, b"x")


@stopped_by(FILTER)
def type_with_the_upper_half_of_the_request_set():
    descriptor = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    LIBC.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p]
    if LIBC.ioctl(descriptor, 0x100005412, b"x") < 0:
        raise OSError(ctypes.get_errno(), "ioctl")


# --- the network -----------------------------------------------------------------------------


def connects(name, family, kind, address, layer=NETWORK):
    def connect():
        with socket.socket(family, kind) as sock:
            sock.settimeout(2)
            sock.connect(address)
            if kind == socket.SOCK_DGRAM:
                sock.send(b"x")
            return address

    connect.__name__ = "connect_" + name
    attempt(layer, connect)


connects("hosts_loopback", socket.AF_INET, socket.SOCK_STREAM,
         ("127.0.0.1", int(os.environ["ESCAPE_PORT"])))  # fmt: skip
connects("outside", socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80))
connects("outside_datagram", socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.53", 53))
connects("outside_v6", socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 80))
connects(
    "abstract_socket", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + os.environ["ESCAPE_ABSTRACT"]
)
connects("socket_in_the_nodes_home", socket.AF_UNIX, socket.SOCK_STREAM,
         os.environ["ESCAPE_SECRET"] + ".sock", MOUNTS)  # fmt: skip


def opens(name, family, kind, protocol=0):
    def open_socket():
        with socket.socket(family, kind, protocol) as sock:
            return sock

    open_socket.__name__ = "socket_" + name
    attempt(FILTER, open_socket)


@stopped_by(FILTER)
def open_a_socket_of_any_other_family():
    # A kernel has those that it was built with: the filter must not depend on that.
    allowed = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
    for family in set(range(1, 70)) - allowed:
        for kind in kinds:
            try:
                socket.socket(family, kind).close()
            except OSError as refused:
                if refused.errno == errno.EAFNOSUPPORT or NO_FILTER:
                    continue
            return family, kind
    raise OSError("none")


@stopped_by(PRIVILEGES)
def add_an_address_by_netlink():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        # RTM_NEWADDR for 10.0.0.1/8 on the first interface, to be acknowledged.
        body = struct.pack("=BBBBI", 2, 8, 0, 0, 1) + struct.pack(
            "=HH4s", 8, 2, bytes((10, 0, 0, 1))
        )
        sock.send(struct.pack("=IHHII", 16 + len(body), 20, 0x605, 1, 0) + body)
        code = struct.unpack("=i", sock.recv(4096)[16:20])[0]
        if code:
            raise OSError(-code, "netlink")


@stopped_by(NETWORK)
def ask_for_a_name():
    return socket.getaddrinfo("example.org", 80)


@stopped_by("IPC namespace")
def find_a_message_queue_of_others():
    for kind in ("msg", "sem"):
        with open("/proc/sysvipc/" + kind) as file:
            if file.read().splitlines()[1:]:
                return kind
    raise OSError("none")


opens("raw", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
opens("packet", 17, socket.SOCK_RAW, 0x0300)
opens("vsock", 40, socket.SOCK_STREAM)
opens("bluetooth", 31, socket.SOCK_RAW)
opens("crypto", 38, socket.SOCK_SEQPACKET)
opens("tipc", 30, socket.SOCK_STREAM)
opens("xdp", 44, socket.SOCK_RAW)
opens("can", 29, socket.SOCK_RAW)


@stopped_by(PRIVILEGES)
def bring_up_an_interface():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"eth0", 1))


@stopped_by(NETWORK)
def see_an_interface_beside_loopback():
    names = [name for _, name in socket.if_nameindex()]
    if names != ["lo"]:
        return names
    raise OSError("only loopback")


@stopped_by("IPC namespace")
def see_shared_memory_of_others():
    with open("/proc/sysvipc/shm") as file:
        rows = file.read().splitlines()[1:]
    if rows:
        return rows
    raise OSError("none")


@stopped_by("closed descriptors")
def inherit_a_descriptor_of_the_node():
    known = ("pipe:", "/dev/null", "/proc/", "/channels/report", "/dev/ptmx", "anon_inode:")
    strange = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + name)
        except OSError:
            continue
        if not target.startswith(known) and "ptmx" not in target:
            strange.append(target)
    if strange:
        return strange
    raise OSError("none")
