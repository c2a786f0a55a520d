"""personal data and secrets are found where their checksums hold, and numbers that only look so are left alone"""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from melior.data.cleaning.privacy import luhn, masked, sightings

TOKEN = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
PEM = "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"
FOUND = [
    ("write to jane.doe@acme-mail.com today", "e-mail", "jane.doe@acme-mail.com"),
    ("call +49 30 901820 55", "phone", "+49 30 901820 55"),
    ("call (212) 664-7665.", "phone", "(212) 664-7665"),
    ("card 4539 5787 6362 1486", "card number", "4539 5787 6362 1486"),
    ("amex 378282246310005", "card number", "378282246310005"),
    ("to DE89 3704 0044 0532 0130 00, please", "iban", "DE89 3704 0044 0532 0130 00"),
    ("to GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
    ("from 84.117.63.205", "ip address", "84.117.63.205"),
    ("ssn 536-90-4399", "us ssn", "536-90-4399"),
    ("DNI 12345678Z", "dni", "12345678Z"),
    ("CPF 529.982.247-25", "cpf", "529.982.247-25"),
    ("CF RSSMRA85T10A562S", "codice fiscale", "RSSMRA85T10A562S"),
    ("personnummer 811218-9876", "personnummer", "811218-9876"),
    ("key AKIA" + "Q3EXW7ZJ5MNB2PLD", "api key", "AKIA" + "Q3EXW7ZJ5MNB2PLD"),
    ("ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8", "api key", "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"),
    ("sk-" + "proj-a1B2c3D4e5F6g7H8i9J0k1L2", "api key", "sk-" + "proj-a1B2c3D4e5F6g7H8i9J0k1L2"),
    (f"Bearer {TOKEN}", "token", TOKEN),
    ("postgres://admin:hunter22@db.acme.io/x", "password", "admin:hunter22"),
    (PEM, "private key", PEM),
]  # fmt: skip
QUIET = [
    "She has 48 + 24 = 72 clips and 1234567890 coins, or 3.14159265358979323846.",
    "12*345678901 - 98765432109876 = 4049382716",
    "x = 0.4539578763621486 and y = 4539578763621487",  # the Luhn digit of the second is wrong
    "version 10.20.30.40 of the firmware, at 192.168.1.17 and 127.0.0.1",
    "Order 123-456-7890 was shipped on 2024-05-17 14:30.",
    "write to me@example.com or someone@mail.example.org",
    "DE89 3704 0044 0532 0130 01",
    "12345678A and CPF 529.982.247-26",
    "sk-your-api-key-goes-right-here",
    "10+1234567890 and (5)+49301234567",
    "555-0123, 212-555-0173",
    "ISBN 978-3-16-148410-0, chapter 3.2.1.4",
    "1111 1111 1111 1111, 0000-0000-0000-0000",
]


@pytest.mark.parametrize(("text", "kind", "piece"), FOUND)
def test_what_is_personal_is_found_exactly_and_masked(text: str, kind: str, piece: str) -> None:
    assert [(s.kind, text[s.start : s.end]) for s in sightings(text)] == [(kind, piece)]
    assert masked(text) == text.replace(piece, f"[{kind.upper()}]")


@pytest.mark.parametrize("text", QUIET)
def test_numbers_that_only_look_so_are_left_alone(text: str) -> None:
    assert sightings(text) == []


@example("call +49 30 901820 55 10+1234567890 and (5)+49301234567")  # one number is seen only once the other is masked
@given(st.lists(st.sampled_from([*(text for text, _, _ in FOUND), *QUIET, " ", "@", "12", "é"])).map(" ".join))
def test_masking_leaves_nothing_to_mask(text: str) -> None:
    assert sightings(masked(text)) == []


@given(st.integers(0, 10**15))
def test_one_check_digit_of_ten_is_right(number: int) -> None:
    assert sum(luhn(f"{number}{digit}") for digit in range(10)) == 1
