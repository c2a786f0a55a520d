"""where a request may go: every address is looked at after its name was resolved, and before it is connected to

Public addresses are always permitted. So is this machine, where the URL says so in so many words (`localhost`,
127.0.0.1, [::1]): that is where people try their reward servers. A name that merely resolves to this machine is
refused, and so are private networks, link-local addresses and the metadata services of clouds, unless whoever runs
melior has permitted them:

    MELIOR_OUTBOUND_ALLOW=rewards.internal,10.1.2.0/24

That is a setting of the machine and not of the grader, since a grader's setting may come from somebody else.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from melior.errors import ConfigError, OutboundError

ALLOW = "MELIOR_OUTBOUND_ALLOW"
PORTS = {"http": 80, "https": 443}
URL_SAFE = "/%:@!$&'()*+,;=~-._"  # RFC 3986 §3.3: what a path may hold as it is
LONGEST_URL = 2_000  # characters; what servers and proxies commonly take

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], list[str]]  # name, port → addresses

# Public by their numbers, yet answered by a cloud's own host.
# Source: learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16; IANA's registry of IPv4 special
# purpose addresses (192.0.0.0/24, where Oracle's cloud has its metadata).
LOCAL = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.0.0.0/24"))
UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that IANA has given out to the public so far
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last four bytes
COMPATIBLE = ipaddress.ip_network("::/96")  # RFC 4291 §2.5.5.1, the same, long out of use


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which addresses may be connected to, besides public ones."""

    loopback: bool = True  # this machine, where the URL spells it; False for URLs that strangers have written
    hosts: frozenset[str] = frozenset()  # names permitted wherever they lead
    networks: tuple[Network, ...] = ()

    def permit(self, host: str, address: str) -> bool:
        """Whether the address, which the host's name was resolved to, may be connected to."""
        if host in self.hosts:
            return True
        ip = ipaddress.ip_address(address.partition("%")[0])
        if any(ip in network for network in self.networks):
            return True
        inner = list(_addresses_in(ip))
        if all(each.is_loopback for each in inner):
            return self.loopback and spells_loopback(host)
        return all(map(_is_public, inner))


def operator_rules() -> Rules:
    """The rules for URLs that whoever runs melior has written, with what `MELIOR_OUTBOUND_ALLOW` permits.

    Raises:
        ConfigError: if that variable holds anything but names and networks.
    """
    hosts: set[str] = set()
    networks: list[Network] = []
    for word in filter(None, (part.strip() for part in os.environ.get(ALLOW, "").split(","))):
        try:
            networks.append(ipaddress.ip_network(word, strict=False))
        except ValueError:
            if "/" in word or ":" in word or _ends_in_a_number(word):
                raise ConfigError(
                    f"{ALLOW} holds {word!r}, which is neither a host's name nor a network; write 10.1.2.0/24"
                ) from None
            hosts.add(word.lower().rstrip("."))
    return Rules(hosts=frozenset(hosts), networks=tuple(networks))


def spells_loopback(host: str) -> bool:
    """Whether a host's name says by itself that it is this machine."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 §6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_public(ip: Address) -> bool:
    if isinstance(ip, ipaddress.IPv6Address):
        return ip.is_global and ip in UNICAST
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in LOCAL)


def _addresses_in(ip: Address) -> Iterator[Address]:
    """The address, or the IPv4 addresses that an IPv6 address stands for."""
    inner: list[Address | None] = []
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in NAT64 or (ip in COMPATIBLE and int(ip) > 1):
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    found = [each for each in inner if each is not None]
    yield from found or [ip]


@dataclass(frozen=True)
class Target:
    """A URL, taken apart once: what is checked is what is connected to."""

    scheme: str
    host: str  # lower case, without brackets, IDNA-encoded
    port: int
    path: str  # with the query

    def __str__(self) -> str:
        """For errors: without the query, which may hold a key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path.partition('?')[0]}"


def parse_url(url: str) -> Target:
    """The target that a URL names.

    Raises:
        ConfigError: if it is not http or https, holds a password, or is spelled so that programs read it differently.
    """
    if len(url) > LONGEST_URL or not url or re.search(r"[\x00-\x20\x7f\\]", url):
        raise ConfigError(f"a URL has 1 to {LONGEST_URL} characters without white space, got {_shown(url)}")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = _encoded(parts.hostname or "")
    except (ValueError, UnicodeError) as error:
        raise ConfigError(f"{_shown(url)} is no URL ({error}); write https://host/path") from None
    if parts.scheme not in PORTS:
        raise ConfigError(f"a URL starts with http:// or https://, got {_shown(url)}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"the URL of {host} holds a user or a password; put credentials into headers_env")
    if not host:
        raise ConfigError(f"{_shown(url)} names no host; write {parts.scheme}://host/path")
    query = f"?{quote(parts.query, safe=URL_SAFE + '?')}" if parts.query else ""
    path = quote(parts.path or "/", safe=URL_SAFE) + query
    return Target(parts.scheme, host, port or PORTS[parts.scheme], path)


def _shown(url: str) -> str:
    """The beginning of a URL, without what may be secret."""
    return repr(url.rpartition("@")[2].partition("?")[0][:40])


def _encoded(host: str) -> str:
    """A host's name as it goes on the wire; addresses have one spelling."""
    host = host.lower().rstrip(".")
    if ":" in host:
        return str(ipaddress.IPv6Address(host))
    if _ends_in_a_number(host):  # 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to some programs
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError("an address is written as four decimal numbers") from None
    return host.encode("idna").decode("ascii")


def _ends_in_a_number(host: str) -> bool:
    """Source: url.spec.whatwg.org, "ends in a number checker"."""
    last = host.rstrip(".").rpartition(".")[2]
    return bool(re.fullmatch(r"\d+|0[xX][0-9a-fA-F]*", last))


def system_resolve(host: str, port: int) -> list[str]:
    """The addresses the machine's resolver knows for a name, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def checked_addresses(host: str, port: int, rules: Rules, resolve: Resolve, timeout_s: float) -> list[str]:
    """The addresses of a host that may be connected to.

    Raises:
        OutboundError: if there are none.
        TimeoutError: if the resolver takes too long; it cannot be interrupted, so it is left to end by itself.
        OSError: if the name is unknown.
    """
    found = _within(timeout_s, lambda: resolve(host, port))
    permitted = [address for address in found if rules.permit(host, address)]
    if not permitted:
        raise OutboundError(
            f"{host} is at {', '.join(found[:3]) or 'no address'}, which is not public; whoever runs melior may permit "
            f"it with {ALLOW}={host}"
        )
    return permitted


def _within(timeout_s: float, work: Callable[[], list[str]]) -> list[str]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return list(future.result(timeout_s))
