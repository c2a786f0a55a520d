"""laws of where a request may go: no spelling of a private address gets through"""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.errors import ConfigError, OutboundError
from melior.outbound.addresses import ALLOW, Rules, checked_addresses, operator_rules, parse_url

PRIVATE = [
    "127.0.0.1", "127.8.9.10", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "100.64.0.1", "169.254.169.254",
    "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::127.0.0.1", "::a00:1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1", "2001:0:a00:1::",
    "fec0::1", "64:ff9b:1::7f00:1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_never_leads_to_a_private_address(address: str) -> None:
    assert not Rules().permit("rewards.example.com", address)
    with pytest.raises(OutboundError, match=r"rewards\.example\.com is at .*MELIOR_OUTBOUND_ALLOW"):
        checked_addresses("rewards.example.com", 443, Rules(), lambda host, port: [address], 5)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_name_may_lead_to_a_public_address(address: str) -> None:
    assert Rules().permit("rewards.example.com", address)
    assert Rules(loopback=False).permit("rewards.example.com", address)


@pytest.mark.parametrize(("host", "address"), [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")])
def test_this_machine_is_permitted_where_the_url_spells_it(host: str, address: str) -> None:
    assert Rules().permit(host, address)
    assert not Rules(loopback=False).permit(host, address)
    assert not Rules().permit(host, "10.0.0.1")  # a resolver that lies


def test_of_several_addresses_the_permitted_remain() -> None:
    found = ["10.0.0.1", "8.8.8.8", "::1", "1.1.1.1"]
    assert checked_addresses("a.example", 80, Rules(), lambda host, port: found, 5) == ["8.8.8.8", "1.1.1.1"]


def test_the_operator_permits_names_and_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW, "Rewards.Internal, 10.1.0.0/16,fd12::/16, 192.168.7.7")
    rules = operator_rules()
    assert rules.permit("rewards.internal", "10.200.0.1")
    assert rules.permit("other", "10.1.255.1") and not rules.permit("other", "10.2.0.1")
    assert rules.permit("other", "fd12::9") and not rules.permit("other", "fd13::9")
    assert rules.permit("other", "192.168.7.7") and not rules.permit("other", "192.168.7.8")


@pytest.mark.parametrize("value", ["10.1.0.0/33", "http://x", "10.1.2", "0x7f.1"])
def test_a_permission_that_cannot_be_read_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW, value)
    with pytest.raises(ConfigError, match="neither a host's name nor a network"):
        operator_rules()


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1", "127.0.0.1.2", "127.0.0.08", "1.2.3.999"]
)
def test_odd_spellings_of_addresses_are_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="four decimal numbers"):
        parse_url(f"http://{host}/")


@given(st.integers(0, 2**32 - 1))
def test_no_spelling_the_resolver_takes_reaches_a_private_network(number: int) -> None:
    address = socket.inet_ntoa(number.to_bytes(4, "big"))
    for spelled in (str(number), hex(number), oct(number).replace("o", ""), address):
        try:
            host = parse_url(f"http://{spelled}/").host
        except ConfigError:
            continue
        assert host == address  # and nothing else is left to be resolved in another way
        assert Rules(loopback=False).permit(host, host) == Rules(loopback=False).permit("a.example", address)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://a.example/", "http:// or https://"),
        ("file:///etc/passwd", "http:// or https://"),
        ("a.example/score", "http:// or https://"),
        ("http://", "names no host"),
        ("http:///score", "names no host"),
        ("http://u:secret@a.example/", "headers_env"),
        ("http://a.example:99999/", "no URL"),
        ("http://a.example:x/", "no URL"),
        ("http://[::1/", "no URL"),
        ("http://a b.example/", "white space"),
        ("http://a.example/\r\nX: y", "white space"),
        ("http://a.example\\@b.example/", "white space"),
        ("", "white space"),
        ("http://a.example/" + "x" * 3000, "1 to 2000 characters"),
        ("http://" + "x" * 300 + ".example/", "no URL"),
    ],
)
def test_urls_that_cannot_be_used(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        parse_url(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["ftp://u:secret@a.example/", "httpx://a.example/?key=secret", "u:secret@a.example"])
def test_no_error_repeats_a_secret(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_url(url)
    assert "secret" not in str(error.value)


def test_a_target_is_told_without_its_query() -> None:
    target = parse_url("HTTPS://Bücher.Example:8443/sco re".replace(" ", "%20") + "?key=secret")
    assert (target.host, target.port, target.path) == ("xn--bcher-kva.example", 8443, "/sco%20re?key=secret")
    assert str(target) == "https://xn--bcher-kva.example:8443/sco%20re"
    assert str(parse_url("http://[::0001]/")) == "http://[::1]/"


def test_a_resolver_that_hangs_is_given_up() -> None:
    event = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        event.wait(20)
        return []

    with pytest.raises(TimeoutError):
        checked_addresses("a.example", 80, Rules(), hang, 0.05)
    event.set()
