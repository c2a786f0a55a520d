"""attempts to get out of a sandbox, as a grader's source; `item["attempt"]` picks one

An attempt that returns has succeeded. One that is stopped raises what stopped it.
"""

# ruff: noqa: SIM115, ANN

import builtins
import ctypes
import errno
import fcntl
import gc
import json
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

ARM = platform.machine() in ("aarch64", "arm64")
NUMBERS = {  # x86_64, aarch64; called with nothing but zeros, which does no harm where it is allowed
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268),
    "unshare": (272, 97), "clone3": (435, 435), "kexec_load": (246, 104), "reboot": (169, 142),
    "init_module": (175, 105), "swapon": (167, 224), "acct": (163, 89), "syslog": (103, 116), "bpf": (321, 280),
    "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217), "fanotify_init": (300, 262),
    "inotify_init1": (294, 26), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "move_pages": (279, 239), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "execveat": (322, 281), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138), "tkill": (200, 130), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "personality": (135, 92), "sethostname": (170, 161),
    "settimeofday": (164, 170), "quotactl": (179, 60), "seccomp": (317, 277), "landlock_restrict_self": (446, 446),
    "setxattr": (188, 5), "timer_create": (222, 107), "sched_setaffinity": (203, 122), "socket": (41, 198),
    "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "sendmsg": (46, 211), "setuid": (105, 146),
    "setgroups": (116, 159), "capset": (126, 91), "ptrace": (101, 117), "prctl": (157, 167),
}  # fmt: skip


def grade(sample, item):
    if item["attempt"] == "nothing":
        return float(len(sample["output_text"]))
    ATTEMPTS[item["attempt"]](item)
    return 1.0


class Contained(Exception):
    """The attempt found nothing to harm."""


def call(name, *arguments):
    """A system call by name; what the kernel says, as an exception or a number."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = libc.syscall(ctypes.c_long(NUMBERS[name][ARM]), *words)
    if result < 0 and ctypes.get_errno() in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result  # any other error comes from a kernel that was willing


def system_call(item):
    call(item["call"], 0, 0, 0, 0, 0, 0)


# files


def read_shadow(item):
    open("/etc/shadow").read()


def read_passwd(item):
    open("/etc/passwd").read()


def read_secret(item):
    assert open(item["secret"]).read() == "canary"


def read_secret_by_another_way(item):
    before = os.getcwd()
    os.chdir(os.path.dirname(item["secret"]))
    try:
        assert open("./../" + os.path.basename(os.getcwd()) + "/secret").read() == "canary"
    finally:
        os.chdir(before)


def read_repository(item):
    open(item["repository"]).read()


def list_folder(item):
    os.listdir(os.path.dirname(item["secret"]))


def list_home(item):
    os.listdir(os.path.expanduser("~root"))


def read_environment(item):
    if "MELIOR_CANARY" not in os.environ:
        raise Contained("not in the environment")


def read_environment_of_the_c_library(item):
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    if libc.getenv(b"MELIOR_CANARY") is None:
        raise Contained("not in the environment")


def read_first_environment(item):
    assert b"MELIOR_CANARY" in open("/proc/self/environ", "rb").read()


def read_environment_of_the_victim(item):
    assert b"MELIOR_CANARY" in open(f"/proc/{item['victim']}/environ", "rb").read()


def read_memory_of_the_trainer(item):
    open(f"/proc/{item['trainer']}/mem", "rb").close()


def read_descriptors_of_the_trainer(item):
    os.listdir(f"/proc/{item['trainer']}/fd")


def read_memory_of_the_victim(item):
    here = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(here), 8)
    call("process_vm_readv", item["victim"], local, 1, local, 1, 0)


def read_kernel_memory(item):
    os.close(os.open("/dev/mem", os.O_RDONLY))


def read_disk(item):
    for name in ("vda", "sda", "nvme0n1", "loop0"):
        try:
            os.close(os.open(f"/dev/{name}", os.O_RDONLY))
            return
        except FileNotFoundError:
            continue
    raise FileNotFoundError(errno.ENOENT, "no disk")


def make_disk(item):
    os.mknod("disk", 0o60600, os.makedev(254, 0))


def write_outside(item):
    open(os.path.join(os.path.dirname(item["secret"]), "escaped"), "w").close()


def write_shared_memory(item):
    open("/dev/shm/melior-escaped", "w").close()


def overwrite(item):
    open(item["secret"], "w").write("escaped")


def truncate(item):
    os.truncate(item["secret"], 0)


def remove(item):
    os.unlink(item["secret"])


def rename(item):
    os.rename(item["secret"], item["secret"] + "-escaped")


def change_mode(item):
    os.chmod(item["secret"], 0o777)


def change_times(item):
    os.utime(item["secret"], (0, 0))


def change_owner(item):
    os.chown(item["secret"], 12345, 12345)


def change_attribute(item):
    os.setxattr(item["secret"], "user.escaped", b"1")


def follow_symbolic_link(item):
    if os.path.lexists("link"):
        os.unlink("link")
    os.symlink(item["secret"], "link")
    assert open("link").read() == "canary"


def write_through_symbolic_link(item):
    if os.path.lexists("folder"):
        os.unlink("folder")
    os.symlink(os.path.dirname(item["secret"]), "folder")
    open("folder/escaped", "w").close()


def hard_link(item):
    os.link(item["secret"], "hard")


def set_user_id_bit(item):
    open("program", "w").close()
    os.chmod("program", 0o4755)


def write_python(item):
    open(os.path.join(os.path.dirname(json.__file__), "escaped.py"), "w").close()


def inherited_descriptors(item):
    for descriptor in range(3, 256):
        try:
            kind = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            try:
                mode = os.fstat(descriptor).st_mode & 0o170000
            except OSError:
                continue
            kind = "pipe:" if mode == 0o010000 else "file"
        if not kind.startswith("pipe:"):
            return
    raise Contained("pipes only")


# the network


def connect(item):
    socket.create_connection(("127.0.0.1", item["port"]), timeout=2).close()


def connect_to_metadata(item):
    socket.create_connection(("169.254.169.254", 80), timeout=2).close()


def connect_6(item):
    socket.socket(socket.AF_INET6, socket.SOCK_STREAM).connect(("::1", item["port"]))


def send_datagram(item):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"canary", ("127.0.0.1", item["port"]))


def listen(item):
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    server.close()


def connect_unix(item):
    socket.socket(socket.AF_UNIX).connect(item["unix"])


def connect_abstract(item):
    socket.socket(socket.AF_UNIX).connect("\0" + item["abstract"])


def send_unix_from_a_pair(item):
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"canary", item["unix"] + "-datagrams")


def netlink(item):
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


def packet(item):
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


def raw(item):
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()


def resolve(item):
    socket.getaddrinfo("example.com", 80)


# other processes


def kill_victim(item):
    os.kill(item["victim"], signal.SIGKILL)


def kill_trainer_softly(item):
    os.kill(item["trainer"], 0)


def kill_everyone_softly(item):
    os.kill(-1, 0)


def kill_group_of_guardian(item):
    os.killpg(os.getppid() or 1, 0)


def kill_by_descriptor(item):
    descriptor = os.pidfd_open(item["victim"])
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def kill_by_owner_of_a_socket(item):
    one, other = socket.socketpair()
    fcntl.fcntl(one, fcntl.F_SETOWN, item["victim"])
    fcntl.fcntl(one, 10, signal.SIGKILL)  # F_SETSIG
    fcntl.fcntl(one, fcntl.F_SETFL, fcntl.fcntl(one, fcntl.F_GETFL) | os.O_ASYNC)
    other.send(b"x")


def trace_victim(item):
    call("ptrace", 0x4206, item["victim"], 0, 0)  # PTRACE_SEIZE
    call("ptrace", 0x4207, item["victim"], 0, 0)  # PTRACE_INTERRUPT
    os.waitpid(item["victim"], 0x40000000)  # __WALL
    call("ptrace", 17, item["victim"], 0, 0)  # PTRACE_DETACH, or nobody else could wait for it


def slow_victim(item):
    os.setpriority(os.PRIO_PROCESS, item["victim"], 19)


def limit_victim(item):
    resource.prlimit(item["victim"], resource.RLIMIT_NOFILE, (3, 3))


def type_into_terminal(item):
    fcntl.ioctl(1, 0x5412, b"x")  # TIOCSTI


def shared_memory(item):
    call("shmget", 0x6D656C, 4096, 0o1000 | 0o600)


# processes and programs


def fork(item):
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def fork_bomb(item):
    for _ in range(1000):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)


def daemon(item):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)


def vfork(item):
    subprocess.run([sys.executable, "-c", ""], check=True)


def shell(item):
    os.execv("/bin/sh", ["sh", "-c", "true"])


def program_in_memory(item):
    descriptor = os.memfd_create("program")
    os.write(descriptor, b"#!/bin/sh\n")
    os.execve(descriptor, ["program"], {})


def preload(item):
    os.environ["LD_PRELOAD"] = os.path.join(os.getcwd(), "evil.so")
    os.execve(sys.executable, [sys.executable, "-c", ""], dict(os.environ))


def threads(item):
    for _ in range(2000):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()


def namespaces_by_clone(item):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000) < 0:  # CLONE_NEWUSER
        raise OSError(ctypes.get_errno(), "unshare")


def thirty_two_bits(item):
    if ARM:
        raise Contained("no such call here")
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("53b814000000cd805bc3"))  # push rbx; mov eax, 20 (getpid); int 0x80; pop rbx; ret
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    assert function() == os.getpid()


def x32(item):
    if ARM:
        raise Contained("no such call here")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(0x40000000 | 39))


# privileges and limits


def become_root(item):
    os.setresuid(0, 0, 0)
    open("/etc/shadow").read()


def regain_capabilities(item):
    header = struct.pack("Ii", 0x20080522, 0)
    everything = struct.pack("6I", *[0xFFFFFFFF] * 6)
    call("capset", header, everything)


def allow_new_privileges(item):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "prctl")


def outlive_guardian(item):
    call("prctl", 1, 0, 0, 0, 0)


def become_dumpable(item):
    call("prctl", 4, 1, 0, 0, 0)


def loosen_filter(item):
    call("prctl", 22, 0, 0, 0, 0)


def raise_limits(item):
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    mmap.mmap(-1, 3 << 30).close()


def eat_memory(item):
    kept = []
    while True:
        kept.append(bytearray(64 << 20))


def eat_shared_memory(item):
    kept = []
    while True:
        kept.append(mmap.mmap(-1, 64 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))


def eat_descriptors(item):
    kept = [open("/dev/null") for _ in range(100_000)]
    assert kept


def one_large_file(item):
    with open("large", "wb") as file:
        for _ in range(100):
            file.write(b"x" * (1 << 20))


def many_files(item):
    for number in range(100_000):
        with open(f"file-{number}", "wb") as file:
            file.write(b"x" * (1 << 20))


def many_empty_files(item):
    for number in range(300_000):
        open(f"empty-{number}", "wb").close()


def deep_folders(item):
    for _ in range(3_000):
        os.mkdir("folder")
        os.chdir("folder")
    time.sleep(60)


def hidden_folder(item):
    os.umask(0o400)
    os.mkdir("hidden")  # its owner may write files into it, and nobody may list them
    time.sleep(60)


def unlinked_files(item):
    kept = []
    for number in range(100_000):
        kept.append(open(f"file-{number}", "wb"))
        kept[-1].write(b"x" * (7 << 20))
        kept[-1].flush()
        os.unlink(f"file-{number}")


# time


def spin(item):
    while True:
        pass


def sleep_and_ignore(item):
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    while True:
        time.sleep(60)


def time_bomb(item):
    def explode(*_):
        os.write(2, b"boom")
        os._exit(7)

    signal.signal(signal.SIGALRM, explode)
    signal.setitimer(signal.ITIMER_REAL, 0.05)


# the pipe, and what is sent through it


def pipes():
    for descriptor in range(3, 256):
        try:
            if os.fstat(descriptor).st_mode & 0o170000 == 0o010000:
                yield descriptor
        except OSError:
            continue


def write_everywhere(text):
    written = 0
    for descriptor in pipes():
        try:
            written += os.write(descriptor, text)
        except OSError:
            continue
    return written


def guess_answer(item):
    for guess in ("", "0", "0" * 16, "ffffffffffffffff"):
        write_everywhere(json.dumps({"id": guess, "score": {"value": 1e9}}).encode() + b"\n")
    raise ValueError("nothing more to try")


def print_answer(item):
    print(json.dumps({"id": request_id(), "score": {"value": 1e9}}), flush=True)
    raise ValueError("nothing more to try")


def request_id():
    """The number of the call being made, which user code can find in the memory of its own process."""
    frame = sys._getframe()
    while frame is not None:
        if "request" in frame.f_locals:
            return frame.f_locals["request"]["id"]
        frame = frame.f_back
    raise Contained("no request found")


def forge(item):
    """Sends `item["text"]` as the score of this very call."""
    write_everywhere(b'{"id": "%s", "score": %s}\n' % (request_id().encode(), item["text"].encode()))
    time.sleep(item.get("then", 0.3))


def forge_end(item):
    write_everywhere(b'{"ended": {"a": [1]}, "output": 7}\n')
    time.sleep(0.3)


def garbage(item):
    write_everywhere(b'[[[{"id"\x00\xff\n' + b"[" * 60_000 + b"\n")


def flood_answers(item):
    end = time.monotonic() + 5
    while time.monotonic() < end:
        write_everywhere(b"x" * 65_536)


def close_everything(item):
    os.closerange(0, 256)


def flood_output(item):
    for _ in range(3000):
        sys.stdout.write("x" * 1000 + "\n")
        sys.stderr.write("y" * 1000 + "\n")


def poison(item):
    builtins.float = lambda value=0: "poisoned"
    json.dumps = lambda *_, **__: '{"id": "x", "score": {"value": "poisoned"}}'
    for kept in gc.get_objects():
        if isinstance(kept, dict) and kept.get("__name__") == "melior.rewards.worker":
            kept["call_grader"] = lambda *_: 1 / 0


def deep_recursion(item):
    def deeper(depth):
        return deeper(depth + 1)

    deeper(0)


def crash(item):
    ctypes.string_at(0)


def crash_the_stack(item):
    sys.setrecursionlimit(10**9)

    class Deep:
        def __repr__(self):
            return repr(self)

    repr(Deep())


ATTEMPTS = {name: found for name, found in list(globals().items()) if callable(found) and name not in ("grade", "call")}
