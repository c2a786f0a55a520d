"""which system calls a process may make: a filter that allows a list and refuses everything else

An allow-list, because the kernel grows: a call nobody has thought about yet is refused. What is on it lets one thread
of Python and its libraries compute, read and write the files it may open, and nothing more: no socket that leads
out, no process or thread, no program, no signal to others, no change of owner, mode or limits. Refused calls fail
with EPERM (PermissionError); those newer than Linux 5.1 with ENOSYS, on which libraries fall back to older ones.
A call by another machine's convention (32 bits, x32), where numbers mean other calls, ends the process.
Source: include/uapi/linux/{seccomp,audit,filter}.h; arch/x86/entry/syscalls, include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator, Sequence

from melior.rewards.sandbox.linux import machine, syscall

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SECCOMP = {"x86_64": 317, "aarch64": 277}
X32_BIT = 0x40000000
SET_MODE_FILTER = 1
KILL_PROCESS, REFUSE, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
FIRST_OF_TODAY = 424  # from here on all machines number alike, and libraries expect ENOSYS of older kernels
LOAD, AND, RETURN = 0x20, 0x54, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_RET|K
JUMP_EQUAL, JUMP_GREATER_OR_EQUAL = 0x15, 0x35  # BPF_JMP|JEQ|K, BPF_JMP|JGE|K
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

# name, number on x86_64, number on aarch64 (- where it has none)
CALLS = """
read 0 63            write 1 64           readv 19 65           writev 20 66          pread64 17 67
pwrite64 18 68       preadv 295 69        pwritev 296 70        close 3 57            close_range 436 436
fstat 5 80           stat 4 -             lstat 6 -             newfstatat 262 79     statx 332 291
lseek 8 62           mmap 9 222           mprotect 10 226       munmap 11 215         mremap 25 216
madvise 28 233       brk 12 214           msync 26 227          mincore 27 232        rt_sigaction 13 134
rt_sigprocmask 14 135  rt_sigreturn 15 139  rt_sigpending 127 136  rt_sigtimedwait 128 137  rt_sigsuspend 130 133
sigaltstack 131 132  restart_syscall 219 128  access 21 -       faccessat 269 48      faccessat2 439 439
pipe 22 -            pipe2 293 59         select 23 -           pselect6 270 72       poll 7 -
ppoll 271 73         epoll_create 213 -   epoll_create1 291 20  epoll_ctl 233 21      epoll_wait 232 -
epoll_pwait 281 22   eventfd2 290 19      sched_yield 24 124    sched_getaffinity 204 123  dup 32 23
dup2 33 -            dup3 292 24          nanosleep 35 101      clock_nanosleep 230 115  clock_gettime 228 113
clock_getres 229 114  gettimeofday 96 169  time 201 -           getitimer 36 102      setitimer 38 103
alarm 37 -           getpid 39 172        gettid 186 178        getppid 110 173       getuid 102 174
geteuid 107 175      getgid 104 176       getegid 108 177       getgroups 115 158     getresuid 118 148
getresgid 120 150    getpgrp 111 -        getpgid 121 155       getsid 124 156        recvfrom 45 207
shutdown 48 210      getsockopt 55 209    getsockname 51 204    getpeername 52 205    exit 60 93
exit_group 231 94    wait4 61 260         waitid 247 95         uname 63 160          flock 73 32
fsync 74 82          fdatasync 75 83      ftruncate 77 46       fallocate 285 47      fadvise64 221 223
getdents 78 -        getdents64 217 61    getcwd 79 17          chdir 80 49           fchdir 81 50
rename 82 -          renameat 264 38      renameat2 316 276     mkdir 83 -            mkdirat 258 34
rmdir 84 -           creat 85 -           unlink 87 -           unlinkat 263 35       symlink 88 -
symlinkat 266 36     readlink 89 -        readlinkat 267 78     umask 95 166          open 2 -
openat 257 56        copy_file_range 326 285  sendfile 40 71    statfs 137 43         fstatfs 138 44
getrlimit 97 163     getrusage 98 165     sysinfo 99 179        times 100 153         futex 202 98
set_robust_list 273 99  get_robust_list 274 100  set_tid_address 218 96  rseq 334 293  membarrier 324 283
getcpu 309 168       getrandom 318 278
"""

# The same for calls that are allowed with certain arguments only; conditions stand in `_conditions`.
GUARDED = """
socketpair 53 199    sendto 44 206        kill 62 129           tgkill 234 131        prlimit64 302 261
ioctl 16 29          fcntl 72 25          prctl 157 167
"""

AF_UNIX, SOCK_STREAM, SOCK_TYPE_MASK = 1, 1, 0xF
ANY = 0xFFFFFFFF
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)  # not F_SETOWN and F_SETSIG, which send signals to others
PRCTLS = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA

Condition = tuple[int, int, tuple[int, ...]]  # which 32-bit half of the arguments (low halves are even), mask, values


def install_filter(pid: int) -> None:
    """Filter the system calls of this process, which has one thread and no_new_privs, for good.

    Raises:
        OSError: if the kernel or the machine has no filters.
    """
    if machine() not in AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"no filter of system calls is written for {machine()}")
    code = program(machine(), pid)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    syscall("seccomp", SECCOMP[machine()], SET_MODE_FILTER, 0, described)


def program(machine_name: str, pid: int) -> bytes:
    """The filter as BPF code; `pid` is the process that may signal itself."""
    lines = [_statement(LOAD, ARCHITECTURE), _jump(JUMP_EQUAL, AUDIT_ARCH[machine_name], 1, 0)]
    lines += [_statement(RETURN, KILL_PROCESS), _statement(LOAD, NUMBER)]
    if machine_name == "x86_64":
        lines += [_jump(JUMP_GREATER_OR_EQUAL, X32_BIT, 0, 1), _statement(RETURN, KILL_PROCESS)]
    for _, number in calls(CALLS, machine_name):
        lines += [_jump(JUMP_EQUAL, number, 0, 1), _statement(RETURN, ALLOW)]
    for name, number in calls(GUARDED, machine_name):
        check = _checked(_conditions(pid)[name])
        lines += [_jump(JUMP_EQUAL, number, 0, len(check)), *check]
    lines += [_jump(JUMP_GREATER_OR_EQUAL, FIRST_OF_TODAY, 0, 1), _statement(RETURN, REFUSE | errno.ENOSYS)]
    return b"".join([*lines, _statement(RETURN, REFUSE | errno.EPERM)])


def calls(table: str, machine_name: str) -> Iterator[tuple[str, int]]:
    """Names and numbers of the calls of a table that this machine has."""
    words = table.split()
    column = ("x86_64", "aarch64").index(machine_name) + 1
    for row in range(0, len(words), 3):
        if words[row + column] != "-":
            yield words[row], int(words[row + column])


def _conditions(pid: int) -> dict[str, Sequence[Condition]]:
    return {
        "socketpair": ((0, ANY, (AF_UNIX,)), (2, SOCK_TYPE_MASK, (SOCK_STREAM,))),  # what asyncio wakes itself with
        "sendto": ((8, ANY, (0,)), (9, ANY, (0,))),  # without an address
        "kill": ((0, ANY, (pid,)),),
        "tgkill": ((0, ANY, (pid,)),),
        "prlimit64": ((0, ANY, (0, pid)),),
        "ioctl": ((2, ANY, IOCTLS),),
        "fcntl": ((2, ANY, FCNTLS),),
        "prctl": ((0, ANY, PRCTLS),),
    }


def _checked(conditions: Sequence[Condition]) -> list[bytes]:
    """Allow the call if every condition holds, refuse it otherwise."""
    lines: list[bytes] = []
    for half, mask, values in conditions:
        lines.append(_statement(LOAD, ARGUMENTS + 4 * half))
        if mask != ANY:
            lines.append(_statement(AND, mask))
        for left in range(len(values), 0, -1):  # an equal value leads past the rest of them and the refusal
            lines.append(_jump(JUMP_EQUAL, values[len(values) - left], left, 0))
        lines.append(_statement(RETURN, REFUSE | errno.EPERM))
    return [*lines, _statement(RETURN, ALLOW)]


def _statement(code: int, constant: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, constant)


def _jump(code: int, constant: int, yes: int, no: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, constant)
