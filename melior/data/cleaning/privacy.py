"""personal data and secrets in a text, found precisely and masked

Every pattern is narrow and, where the number has a checksum, the checksum decides: a text full of numbers stays quiet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

CHECKED_IBAN = 97
# ISO 13616 registry: length of an IBAN by country.
_IBAN_LENGTHS = (
    "NO15 BE16 DK18 FI18 FO18 GL18 NL18 MK19 SI19 AT20 BA20 EE20 KZ20 LT20 LU20 CH21 HR21 LI21 LV21 BG22 "
    "BH22 DE22 GB22 GE22 IE22 ME22 RS22 AE23 GI23 IL23 AD24 CZ24 ES24 MD24 PK24 RO24 SA24 SE24 SK24 TN24 "
    "VG24 PT25 IS26 TR26 FR27 GR27 IT27 MC27 MR27 SM27 AL28 AZ28 CY28 DO28 GT28 HU28 LB28 PL28 BR29 PS29 "
    "QA29 UA29 JO30 KW30 MU30 MT31"
)
IBAN_LENGTH = {entry[:2]: int(entry[2:]) for entry in _IBAN_LENGTHS.split()}
RESERVED = re.compile(r"@(?:[\w.-]+\.)?(?:example(?:\.\w+)?|test|invalid|localhost)$", re.I)  # RFC 2606
DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
ITALIAN_ODD = [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23]


@dataclass(frozen=True)
class Sighting:
    """A piece of a text that should not be there."""

    kind: str
    start: int
    end: int
    secret: bool


@dataclass(frozen=True)
class Pattern:
    """How one kind of personal data looks. It is searched only where one of `hints` stands in the text."""

    kind: str
    regex: re.Pattern[str]
    holds: Callable[[str], bool] = lambda text: True
    hints: tuple[str, ...] = ()
    secret: bool = False


def sightings(text: str) -> list[Sighting]:
    """Everything personal or secret in a text, in order, without overlaps."""
    if not suspicious(text):
        return []
    found = sorted(_found(text), key=lambda sighting: (sighting.start, -sighting.end))
    kept: list[Sighting] = []
    for sighting in found:
        if not kept or sighting.start >= kept[-1].end:
            kept.append(sighting)
    return kept


def suspicious(text: str) -> bool:
    """Whether a text is worth a closer look: most are not, and this is quick."""
    return any(hint in text for hint in _HINTS) or _NUMBERS.search(text) is not None


def masked(text: str, *, secrets: bool = True, personal: bool = True) -> str:
    """The text with each sighting replaced by its kind in brackets, and what only stands out then as well."""
    while found := [sighting for sighting in sightings(text) if (secrets if sighting.secret else personal)]:
        for sighting in reversed(found):
            text = f"{text[: sighting.start]}[{sighting.kind.upper()}]{text[sighting.end :]}"
    return text


def _found(text: str) -> Iterator[Sighting]:
    for pattern in PATTERNS:
        if pattern.hints and not any(hint in text for hint in pattern.hints):
            continue
        for match in pattern.regex.finditer(text):
            if pattern.holds(match.group()):
                yield Sighting(pattern.kind, *match.span(), pattern.secret)


def luhn(digits: str) -> bool:
    """Whether a number's last digit is its Luhn check digit (ISO/IEC 7812-1)."""
    doubled = [int(digit) * (2 if index % 2 else 1) for index, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdecimal())


def _is_card(text: str) -> bool:
    digits = _digits(text)
    brand = (
        (digits[0] == "4" and len(digits) in (13, 16, 19))
        or (len(digits) == 16 and (51 <= int(digits[:2]) <= 55 or 2221 <= int(digits[:4]) <= 2720))
        or (len(digits) == 15 and digits[:2] in ("34", "37"))
        or (len(digits) == 16 and (digits[:4] == "6011" or digits[:2] in ("65", "35")))
        or (len(digits) == 14 and digits[:2] in ("36", "38"))
    )
    return brand and len(set(digits)) > 2 and luhn(digits)


def _is_iban(text: str) -> bool:
    """ISO 13616: the letters become numbers, the first four characters go last, and the rest of 97 is 1."""
    compact = text.replace(" ", "")
    if IBAN_LENGTH.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % CHECKED_IBAN == 1


def _is_address(text: str) -> bool:
    """An IPv4 address on the public network; versions such as 1.2.10.4 have mostly one-digit parts."""
    parts = [int(part) for part in text.split(".")]
    private = parts[0] in (0, 10, 127) or parts[0] >= 224 or parts[:2] in ([192, 168], [169, 254])
    private = private or (parts[0] == 172 and 16 <= parts[1] <= 31) or parts[:3] in ([192, 0, 2], [203, 0, 113])
    return all(part <= 255 for part in parts) and not private and sum(part > 9 for part in parts) >= 2


def _is_phone(text: str) -> bool:
    digits = _digits(text)
    if text.startswith("+"):
        return 9 <= len(digits) <= 15 and len(set(digits)) > 2
    return digits[0] not in "01" and digits[3] not in "01" and digits[3:8] != "55501"  # 555-01xx is for fiction


def _is_dni(text: str) -> bool:
    number = text[:-1].upper().replace("X", "0").replace("Y", "1").replace("Z", "2").replace("-", "")
    return DNI_LETTERS[int(number) % 23] == text[-1].upper()


def _is_codice_fiscale(text: str) -> bool:
    values = [int(character, 36) - (0 if character.isdigit() else 10) for character in text[:15]]
    total = sum(ITALIAN_ODD[value] if index % 2 == 0 else value for index, value in enumerate(values))
    return chr(ord("A") + total % 26) == text[15]


def _is_cpf(text: str) -> bool:
    """Brazil's CPF: two check digits modulo 11."""
    digits = [int(digit) for digit in _digits(text)]
    for length in (9, 10):
        rest = sum(digit * (length + 1 - index) for index, digit in enumerate(digits[:length])) * 10 % 11 % 10
        if rest != digits[length]:
            return False
    return len(set(digits)) > 1


def _is_nir(text: str) -> bool:
    digits = _digits(text)
    return 97 - int(digits[:13]) % 97 == int(digits[13:])


def _is_personnummer(text: str) -> bool:
    digits = _digits(text)[-10:]
    return 1 <= int(digits[2:4]) <= 12 and 1 <= int(digits[4:6]) <= 31 and luhn(digits)


def _is_mixed(text: str) -> bool:
    """A key has letters and digits in disorder; a made-up placeholder such as sk-your-key-here has not."""
    tail = text[-20:]
    return any(c.isdigit() for c in tail) and any(c.isalpha() for c in tail) and len(set(tail)) > 8


# A number must not be part of a longer one, of a decimal, or of a word.
_ALONE, _END = r"(?<![\w.,/+=-])", r"(?![\w/=]|[.,-]\d)"
# What is left out has no number long enough: most texts end here.
_NUMBERS = re.compile(r"\d(?:[ .()-]{0,2}\d){6}|\d\.\d{1,3}\.\d|[A-Z]{6}\d\d[A-Z]|[A-Z]\d\d ?[A-Z]")
PATTERNS = (
    Pattern(
        "private key",
        re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----(?:[\s\S]*?-----END (?:[A-Z]+ )*PRIVATE KEY-----)?"),
        hints=("PRIVATE KEY",),
        secret=True,
    ),
    Pattern(
        "token",
        re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),  # RFC 7519, JSON Web Token
        hints=("eyJ",),
        secret=True,
    ),
    Pattern("api key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), hints=("AKIA", "ASIA"), secret=True),
    Pattern(
        "api key",
        re.compile(r"\b(?:gh[pousr]_\w{36,}|github_pat_\w{40,}|hf_[A-Za-z]{30,}|AIza[\w-]{35}|glpat-[\w-]{20,})"),
        hints=("gh", "hf_", "AIza", "glpat-"),
        secret=True,
    ),
    Pattern(
        "api key",
        re.compile(r"\b(?:sk|pk|rk)[-_](?:[a-z]+[-_]){0,2}[A-Za-z0-9_-]{20,}|\bxox[abprs]-[\w-]{10,}"),
        _is_mixed,
        hints=("sk-", "sk_", "pk_", "rk_", "xox"),
        secret=True,
    ),
    Pattern("password", re.compile(r"(?<=://)[^\s/:@]+:[^\s/:@]+(?=@[\w.-]+)"), hints=("://",), secret=True),
    Pattern(
        "e-mail",
        re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"),
        lambda text: not RESERVED.search(text),
        hints=("@",),
    ),
    Pattern("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _is_iban),
    Pattern("card number", re.compile(_ALONE + r"\d(?:[ -]?\d){12,18}" + _END), _is_card),
    Pattern("us ssn", re.compile(_ALONE + r"(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}" + _END), hints=("-",)),
    Pattern("cpf", re.compile(_ALONE + r"\d{3}\.\d{3}\.\d{3}-\d\d" + _END), _is_cpf, hints=("-",)),
    Pattern("dni", re.compile(r"\b(?:\d{8}|[XYZ]\d{7})-?[A-HJ-NP-TV-Z]\b"), _is_dni),
    Pattern("codice fiscale", re.compile(r"\b[A-Z]{6}\d\d[A-EHLMPR-T]\d\d[A-Z]\d{3}[A-Z]\b"), _is_codice_fiscale),
    Pattern("nir", re.compile(_ALONE + r"[12] \d\d \d\d \d\d \d{3} \d{3} \d\d" + _END), _is_nir),
    Pattern("personnummer", re.compile(_ALONE + r"(?:19|20)?\d{6}-\d{4}" + _END), _is_personnummer, hints=("-",)),
    Pattern(
        "phone",
        re.compile(r"(?<![\w+.=/)-])\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,12}" + _END),
        _is_phone,
        hints=("+",),
    ),
    Pattern("phone", re.compile(_ALONE + r"(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}" + _END), _is_phone),
    Pattern("ip address", re.compile(_ALONE + r"(?<!version )(?:\d{1,3}\.){3}\d{1,3}" + _END), _is_address, (".",)),
)  # fmt: skip
_HINTS = tuple({hint for pattern in PATTERNS if pattern.secret for hint in pattern.hints} | {"@"})
