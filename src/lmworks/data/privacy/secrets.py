"""The table of secrets: keys, tokens and passwords, by the forms their issuers give them. Knows no replacement.

The last row finds what is assigned to a name such as `password` and looks random; it is the least sure.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Callable

from lmworks.data.privacy.detectors import Detector, Pattern, always

MIN_ENTROPY = 3.0
"""Bits per character of an assigned value: English words have some 2.5 to 3.2 at this length, random text above 3.5.
Short values are measured against 0.85 of what their length allows."""
_PLACEHOLDER = re.compile(
    r"example|sample|dummy|placeholder|changeme|change_me|your|xxxx|\*{3}|\.{3}|redacted|todo|"
    r"\$\{|\{\{|<[^>]*>|%\(|env\(|environ|getenv|process\.|0000000|1234567|abcdef",
    re.IGNORECASE,
)


_NO_VALUE = re.compile(
    r"[$%@&*!]\w+%?$|\.{0,2}/|~/|[A-Za-z]:\\|[a-z]+://|[A-Za-z_][\w.:>-]*[(\[](?:.*[)\],;(\[])?$", re.ASCII
)
_LIKE_A_NAME = re.compile(r"[\w./:@+=-]+[,;]?", re.ASCII)
_ENVIRONMENT = re.compile(r"\s*(?:export\s+|set\s+|ENV\s+)?[A-Z][A-Z0-9_]*=")
_SECRET_NAME = (
    r"(?i:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|auth[_-]?key|private[_-]?key|credential)"
)
_SECRET_WORDS = ("passw", "passphrase", "pwd", "secret", "token", "key", "credential")


def entropy(text: str) -> float:
    """Shannon entropy of the characters, in bits each."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _real(match: re.Match[str]) -> bool:
    """Not an example from documentation."""
    return not _PLACEHOLDER.search(_value(match))


def _value(match: re.Match[str]) -> str:
    return match["x"] if "x" in match.re.groupindex else match[0]


def _random(match: re.Match[str]) -> bool:
    """Looks random: high entropy, and letters mixed with digits or signs."""
    value = _value(match)
    mixed = re.search(r"[A-Za-z]", value) and re.search(r"[^A-Za-z\s_.]", value)
    return bool(mixed) and entropy(value) >= min(MIN_ENTROPY, 0.85 * math.log2(len(value))) and _real(match)


def _is_plain_assignment(match: re.Match[str]) -> bool:
    """Looks random and holds a digit, and is neither a variable, a path or address, a call nor a name of code."""
    value = _value(match)
    if not _random(match) or _NO_VALUE.match(value) or not any(c.isdigit() for c in value):
        return False
    if not _LIKE_A_NAME.fullmatch(value):
        return True
    if re.fullmatch(r"(?=(?:\D*\d){4})[0-9a-f-]{20,}", value):
        return True
    digits = 1 if _ENVIRONMENT.match(match[0]) else 2  # code has names such as newToken2
    return bool(re.search("[A-Z]", value) and re.search("[a-z]", value)) and sum(c.isdigit() for c in value) >= digits


def _is_jwt(match: re.Match[str]) -> bool:
    header = match[0].partition(".")[0]
    try:
        return "alg" in json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (ValueError, binascii.Error, TypeError):
        return False


def _is_api_key(match: re.Match[str]) -> bool:
    if re.match("hf_|npm_|[srp]k_", match[0]):
        return _real(match)
    return _real(match) and entropy(match[0]) >= MIN_ENTROPY and any(c.isdigit() for c in match[0])


def _is_password(match: re.Match[str]) -> bool:
    return _real(match) and _value(match).lower() not in ("password", "pass", "passwd", "pwd", "secret")


def _row(
    kind: str, regex: str, check: Callable[[re.Match[str]], bool] = _real, needs: tuple[str, ...] = ()
) -> Detector:
    return Detector(kind, Pattern(re.compile(regex), check, needs), secret=True)


SECRETS: tuple[Detector, ...] = (
    _row("PRIVATE_KEY", r"-----BEGIN (?P<k>[A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?)-----"
         r"[\s\S]{20,20000}?-----END (?P=k)-----",
         always, ("private key",)),
    _row("JWT", r"(?<![\w-])eyJ[\w-]{8,4096}\.eyJ[\w-]{4,8192}\.[\w-]{16,1024}", _is_jwt, ("eyj",)),
    _row("AWS_ACCESS_KEY", r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])",
         needs=("akia", "asia", "abia", "acca")),
    _row("AWS_SECRET_KEY",
         r"(?i:aws|secret)[\w .-]{0,20}(?i:key)\W{1,6}(?P<x>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])", _random, ("key",)),
    _row("GITHUB_TOKEN", r"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{60,90})",
         needs=("gh", "github_pat_")),
    _row("GITLAB_TOKEN", r"(?<![A-Za-z0-9_])gl(?:pat|dt|rt|cbt|ptt)-[\w-]{20,64}", needs=("gl",)),
    _row("SLACK_TOKEN", r"(?<![A-Za-z0-9])xox[abeoprs]-(?:\d+-)*[A-Za-z0-9-]{10,250}"
         r"|https://hooks\.slack\.com/services/T\w{6,12}/B\w{6,12}/\w{20,28}", needs=("xox", "hooks.slack.com")),
    _row("GOOGLE_API_KEY", r"(?<![\w-])(?:AIza[\w-]{35}|GOCSPX-[\w-]{28}|ya29\.[\w-]{30,300})(?![\w-])",
         needs=("aiza", "gocspx-", "ya29.")),
    _row("API_KEY", r"(?<![\w-])(?:sk-(?:proj-|ant-[a-z0-9]+-|or-v1-|svcacct-)?[A-Za-z0-9_-]{20,250}"
         r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,120}|hf_[A-Za-z]{34}|npm_[A-Za-z0-9]{36}"
         r"|pypi-AgE[\w-]{50,300}|SG\.[\w-]{22}\.[\w-]{43}|dop_v1_[0-9a-f]{64})(?![\w-])",
         _is_api_key),
    _row("CONNECTION_PASSWORD",
         r"(?<![A-Za-z])[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s:/@'\"<>]{0,64}:(?P<x>[^\s:/@'\"<>]{3,128})@[\w\[]",
         _is_password,
         ("://",)),
    _row("ASSIGNED_SECRET",
         _SECRET_NAME + r"[\w-]{0,20}[\"']?\s{0,4}(?:[:=]|:=|=>)\s{0,4}(?:(?P<q>[\"'`])(?P<x>[^\s\"'`]{8,200})(?P=q))",
         _random, _SECRET_WORDS),
    _row("ASSIGNED_SECRET",  # without quotes, as in .env files, settings and YAML
         r"(?m)^[ \t]*(?:(?:export|set|ENV|-)[ \t]+)?[\w.-]{0,40}?" + _SECRET_NAME +
         r"[\w-]{0,20}(?:[ \t]{0,4}=|:[ \t])[ \t]{0,4}(?P<x>[^\s\"'`<>]{8,200})(?=[ \t]{0,4}(?:\r?$|[ \t]#))",
         _is_plain_assignment, _SECRET_WORDS),
    _row("ASSIGNED_SECRET",  # of a command or an address
         r"(?:(?<!\S)--|[?&])[\w.-]{0,40}?" + _SECRET_NAME + r"[\w-]{0,20}=(?P<x>[^\s\"'`<>&#]{8,200})",
         _is_plain_assignment, _SECRET_WORDS),
)  # fmt: skip
