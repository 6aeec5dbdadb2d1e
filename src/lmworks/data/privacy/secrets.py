"""The table of secrets: keys, tokens and passwords, by their forms and by what stands before. Knows no replacement.

The last rows find what is assigned to a name such as `password` and looks random; they are the least sure.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Callable

from lmworks.data.privacy.detectors import Detector, Pattern
from lmworks.data.privacy.token_forms import IssuedTokens

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
_PATH_OF_NAMES = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*){2,}", re.ASCII)
_LIKE_A_NAME = re.compile(r"[\w./:@+=-]+[,;]?", re.ASCII)
_TURNS = re.compile(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")
"""Where letters meet digits: names of code have few such places."""
_ENVIRONMENT = re.compile(r"\s*(?:export\s+|set\s+|ENV\s+)?[A-Z][A-Z0-9_]*=")
_SECRET_NAME = (
    r"(?i:passw(?:or)?d|passphrase|pwd|secret|token|credential"
    r"|(?:api|access|auth|private|signing|encryption|master|session|account|license|app)[_-]?key)"
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
    """Looks random: high entropy, letters mixed with digits or signs, no path."""
    value = _value(match)
    mixed = re.search(r"[A-Za-z]", value) and re.search(r"[^A-Za-z\s_.:/-]", value)
    if not mixed or (value[0] in "./~" and not _is_shuffled(value)):
        return False
    return entropy(value) >= min(MIN_ENTROPY, 0.85 * math.log2(len(value))) and _real(match)


def _is_shuffled(value: str) -> bool:
    """Letters and digits alternate more often than in names."""
    return len(value) >= 16 and len(_TURNS.findall(value)) >= 5


def _is_generated(match: re.Match[str]) -> bool:
    """Random beyond doubt, so that no sign of an assignment is needed before it."""
    return _is_shuffled(_value(match)) and _random(match)


def _is_plain_assignment(match: re.Match[str]) -> bool:
    """Looks random and holds a digit, and is neither a variable, a path or address, a call nor a name of code."""
    value = _value(match)
    named = _NO_VALUE.match(value) or _PATH_OF_NAMES.fullmatch(value)
    if named or not _random(match) or not any(c.isdigit() for c in value):
        return False
    if not _LIKE_A_NAME.fullmatch(value):
        return True
    if _is_shuffled(value):
        return True
    digits = 1 if _ENVIRONMENT.match(match[0]) else 2  # code has names such as newToken2
    return bool(re.search("[A-Z]", value) and re.search("[a-z]", value)) and sum(c.isdigit() for c in value) >= digits


def _is_jwt(match: re.Match[str]) -> bool:
    header = match[0].partition(".")[0]
    try:
        return "alg" in json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (ValueError, binascii.Error, TypeError):
        return False


def _is_issued(token: str) -> bool:
    """Not an example, nor words in a row, as in names of styles that begin with `sk-`."""
    words = token.startswith("sk-") and not re.search("[A-Za-z0-9]{16}", token)
    return not (_PLACEHOLDER.search(token) or words) and entropy(token) >= MIN_ENTROPY


def _is_basic(match: re.Match[str]) -> bool:
    """A name and a password in base64."""
    value = match["x"]
    try:
        said = base64.b64decode(value + "=" * (-len(value) % 4)).decode()
    except (ValueError, binascii.Error):
        return False
    return ":" in said and said.isprintable() and not _PLACEHOLDER.search(said)


def _has_body(match: re.Match[str]) -> bool:
    """More than the words about keys in a text."""
    return bool(re.search(r"[A-Za-z0-9+/=]{32}", match[0]))


def _holds_private_key(match: re.Match[str]) -> bool:
    """Base64 of `-----BEGIN … PRIVATE KEY`."""
    return b"PRIVATE KEY" in base64.b64decode(match[0][:80])


def _is_password(match: re.Match[str]) -> bool:
    value = _value(match)
    variable = _NO_VALUE.match(value) or re.search(r"[${(%]", value[:2])
    return _real(match) and not variable and value.lower() not in ("password", "pass", "passwd", "pwd", "secret")


def _row(
    kind: str, regex: str, check: Callable[[re.Match[str]], bool] = _real, needs: tuple[str, ...] = ()
) -> Detector:
    return Detector(kind, Pattern(re.compile(regex, re.ASCII), check, needs), secret=True)


SECRETS: tuple[Detector, ...] = (
    _row("PRIVATE_KEY", r"-----BEGIN (?P<k>[A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?)-----"
         r"(?:(?!-----BEGIN)[\s\S]){20,20000}?-----END (?P=k)-----",
         _has_body, ("private key",)),
    _row("PRIVATE_KEY", r"---- BEGIN (?P<k>SSH2 [A-Z0-9 ]{0,20}PRIVATE KEY) ----[\s\S]{20,20000}?---- END (?P=k) ----",
         _has_body, ("private key",)),
    _row("PRIVATE_KEY",  # without its end
         r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
         r"(?:(?:\s|\\[rn]){1,4}[A-Za-z0-9+/=:,. -]{16,80}){1,200}",
         _has_body, ("private key",)),
    _row("PRIVATE_KEY", r"(?<=PuTTY-User-Key-File-)[23]: [\s\S]{20,4000}?"
         r"Private-Lines: \d{1,3}\s{1,2}(?:[A-Za-z0-9+/=]{1,80}\s{1,2}){1,200}",
         _has_body, ("putty-user-key-file",)),
    _row("PRIVATE_KEY", r"(?<![\w+/])LS0tLS1CRUdJTi[\w+/=-]{66,30000}", _holds_private_key, ("ls0tls1crudjti",)),
    _row("JWT", r"(?<![\w-])eyJ[\w-]{8,4096}\.eyJ[\w-]{4,8192}\.[\w-]{16,1024}", _is_jwt, ("eyj",)),
    _row("AWS_ACCESS_KEY", r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])",
         needs=("akia", "asia", "abia", "acca")),
    _row("AWS_SECRET_KEY",
         r"(?i:aws|secret)[\w .-]{0,20}(?i:key)\W{1,6}(?P<x>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])", _random, ("key",)),
    _row("GITHUB_TOKEN", r"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{60,90})",
         needs=("gh", "github_pat_")),
    _row("GITLAB_TOKEN", r"(?<![A-Za-z0-9_])gl(?:pat|dt|rtr?|cbt|ptt|ffct|ft|imt|agent|oas|soat)-[\w-]{20,64}"
         r"(?:\.[\w.]{2,20})?|(?<!\w)GR1348941[\w-]{20}(?!\w)", needs=("gl", "gr1348941")),
    _row("SLACK_TOKEN", r"(?<![A-Za-z0-9])(?:xox[abeoprsd]-(?:\d+-)*[A-Za-z0-9-]{10,250}"
         r"|xapp-\d-[A-Z0-9]+-\d+-[a-z0-9]{16,90}|xoxe(?:\.xox[bp])?-\d-[A-Za-z0-9]{100,200})"
         r"|https://hooks\.slack\.com/(?:services|workflows|triggers)/\w{6,14}/\w{6,16}/[\w/]{20,60}",
         needs=("xox", "xapp-", "hooks.slack.com")),
    _row("GOOGLE_API_KEY", r"(?<![\w-])(?:AIza[\w-]{35}|GOCSPX-[\w-]{28}|ya29\.[\w-]{30,300})(?![\w-])",
         needs=("aiza", "gocspx-", "ya29.")),
    Detector("API_KEY", IssuedTokens(_is_issued), secret=True),
    _row("API_KEY", r"(?<![\w~.-])[\w~.]{3}\dQ~[\w~.-]{31,34}(?![\w~.-])", _random, ("q~",)),  # Azure
    _row("API_KEY", r"(?<![\w.])[a-z0-9A-Z]{14}\.atlasv1\.[\w=-]{60,70}", needs=(".atlasv1.",)),  # Terraform
    _row("API_KEY", r"(?<![\w.-])[0-9a-f]{32}-us\d{1,2}(?![\w-])", _random, ("-us",)),  # Mailchimp
    _row("API_KEY", r"(?<!\w)\w{6}_\w{29}_mmk(?!\w)", needs=("_mmk",)),  # MaxMind
    _row("API_KEY", r"(?<![\w:])\d{8,10}:AA[\w-]{33}(?![\w-])", _random, (":aa",)),  # Telegram
    _row("API_KEY", r"(?<![\w.-])[MNO][A-Za-z\d]{23,27}\.[\w-]{6}\.[\w-]{27,38}(?![\w.-])", _random, (".",)),  # Discord
    _row("CONNECTION_PASSWORD",
         r"(?<![A-Za-z])[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s:/@'\"<>]{0,64}:(?P<x>[^\s:/@'\"<>]{3,128})@[\w\[]",
         _is_password,
         ("://",)),
    _row("CONNECTION_PASSWORD",  # Server=…;Password=…; as ODBC, ADO.NET and Azure write it
         r"\w=[^;\r\n\"']{0,200};\s{0,2}(?i:password|pwd|accountkey|sharedaccesskey)\s{0,2}=\s{0,2}"
         r"(?P<x>[^;\s\"'<>]{4,200})(?=[;\s\"'<]|$)",
         _is_password, ("password", "pwd", "accesskey", "accountkey")),
    _row("HTTP_CREDENTIALS",
         r"(?i:authorization[\"']?\s*[:=]\s*[\"']?basic\s+)(?P<x>[A-Za-z0-9+/_-]{6,400}={0,2})",
         _is_basic, ("basic",)),
    _row("HTTP_CREDENTIALS",
         r"(?i:\bbearer[ \t]+)(?P<x>[\w.~+/-]{20,2000}={0,2})(?![\w.~+/=-])", _is_plain_assignment, ("bearer",)),
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
    _row("ASSIGNED_SECRET",  # of an element of XML
         r"<(?:\w{1,20}:)?[\w-]{0,20}" + _SECRET_NAME + r"[\w-]{0,20}>\s{0,4}(?P<x>[^\s<>]{6,200})\s{0,4}</",
         _random, _SECRET_WORDS),
    _row("ASSIGNED_SECRET",  # of a header, a word of a command, an attribute: after the name and little else
         _SECRET_NAME + r"[\w-]{0,20}(?:[\"']\s{0,4}value)?[\"']?(?:\s{0,2}[:=]\s{0,2}|[ \t])[\"']?"
         r"(?P<x>[\w+/.~-]{16,200}={0,2})(?![\w+/=-])",
         _is_generated, _SECRET_WORDS),
    _row("ASSIGNED_SECRET",
         r"(?:密码|密碼|口令|密钥|密鑰|令牌)[是为為]?\s{0,2}[:：=]?\s{0,2}(?P<x>[!-~]{8,200})",
         _random, ("密", "口令", "令牌")),
)  # fmt: skip
