"""Masks secrets in text that leaves the process, and shows text of any origin as it is."""

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "***"

_USERINFO = re.compile(
    r"([A-Z][A-Z0-9+.-]{0,30})(:(?:\\?/){2})([^/\s?#'\"<>]+)(?=@)"
    r"|([A-Z][A-Z0-9+.-]{0,30})(%(?:25)*3A(?:%(?:25)*2F){2})"  # percent-encoded in another URI
    r"((?:(?!%(?:25)*(?:2F|3F|23|26))[^/\s?#&'\"<>])+)(?=%(?:25)*40)",
    re.IGNORECASE,
)
_LOGIN = re.compile(r"abfss?|wasbs?|adl?|az|(s|web)?hdfs|sftp|scp|(git\+)?ssh|smb", re.IGNORECASE)
"""Protocols of ``container@account`` and ``login@host``, which are not secret without a colon."""
_PAIR = re.compile(
    r"(?:(?<![\w.%-])|(?<=3[BDF])|(?<=2[36]))([\w.%-]{1,200}?)"
    r"( ?= ?|%(?:25)*3D|\\*[\"'] ?[:,] ?|: ?)",
    re.IGNORECASE,
)
"""A name before its value: in a query (also percent-encoded), ``repr``, JSON or a header."""
_QUOTED = re.compile(r"(b?(\\*[\"']))(?:(?!\2)(?:\\.|[^\"\n\\]))+(?=\2)")
_HEADER_VALUE = re.compile(r"()(?:(?:Bearer|Basic|Token) [^\s'\"<>,]+|[^\n'\"<>]+)")
_VALUE, _QUERY_VALUE, _ENCODED_VALUE = (
    re.compile(
        rf"((?:b?\\*[\"'])?)(?:(?!{end})(?:[^\s&'\"<>\\;]|\\[^\s'\"]|;(?![\w.%-]+=)))+",
        re.IGNORECASE,
    )
    for end in ("$", r"#|\\u0026", "#|%(?:25)*(?:23|26)")
)
_BARE = re.compile(
    r"\b(Bearer )(?=\S*[\d.])[\w.~+/=-]{8,}|(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|([?&]verify=)\d{9,}-[\w%+/=-]+"
)
"""Secrets by their form: bearer tokens, JSON web tokens, Cloudflare's signatures."""
_SECRET_NAME = re.compile(
    r"SECRET|(?<!PAGE)(?<!PAGE_)(?<!NEXT)(?<!NEXT_)(?<!CONTINUATION_)(?<!NUM_)(?<!MAX_)TOKENS?(_|$)|PASSW(OR)?D|"
    r"PASSPHRASE|CREDENTIAL|SIGNATURE|AUTHORIZATION|CONNECTION_?STRING|SAS(_|$)|JWT|HMAC|"
    r"(^|_)PASS$|_PWD$|(ACCESS|ACCOUNT|API|APP|AUTH|CLIENT|MASTER|PRIVATE|SHARED|SIGNING)_?KEY"
)
_QUERY_NAME = re.compile(
    r"TOKEN(?!I)(?!S?$)|^(KEY|SIG|LSIG|SIGN|AUTH|PWD|POLICY|SE|SK[OT]ID|HDN(EA|T[LS])|OH|HM)$|"
    r"(^|_|J|PHP)SESS(ION)?_?(ID)?$|KEY_PAIR_ID|ACCESS_?(KEY_?)?ID|RES(OURCE)?_?KEY|RL_?KEY|"
    r"TEMP_?AUTH|Q_AK$|^X_(AMZ|BCE|COS|GOOG|OBS|OSS|TOS)_"
)
"""Names that are secret in a query: those of presigned URIs and sessions."""
_HEADER_NAME = re.compile(r"AUTHORIZATION$|COOKIE$|^X_.*(KEY|SECRET|SIGNATURE|TOKEN)")
_PLACE_NAME = re.compile(r"(_FILE|_PATH|_DIR|_URI|_URL|_ENDPOINT|_PROVIDER)$|^GOOGLE_APPLICATION_")
"""Variables that hold the place of a secret, not the secret."""
_UNSEEN = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return ``text`` with every secret replaced by ``***``. Idempotent.

    Secrets are userinfo in URIs, what signs their queries and paths (as that of S3, GCS, Azure and
    CDNs), values of names such as ``password`` and of headers such as ``Authorization``, and the
    values of environment variables with names such as ``HF_TOKEN``, also in URL encoding. Short or
    simple values of variables are kept.
    """
    for value in _secret_values(os.environ if environ is None else environ):
        text = text.replace(value, MASK)
    text = _USERINFO.sub(_without_userinfo, text)
    text = _BARE.sub(lambda found: f"{found[1] or found[2] or ''}{MASK}", text)
    parts, end = [], 0
    for pair in _PAIR.finditer(text):
        if pair.start() >= end and (value := _secret_value(pair)):
            parts += [text[end : pair.end()], value[1], MASK]
            end = value.end()
    return "".join([*parts, text[end:]])


def printable(text: str) -> str:
    """Mask secrets in text of any origin, and escape all that is not seen as it is.

    That is controls (such as those of terminals), line breaks, marks that reorder or hide text,
    and blanks besides the space. Escapes are those of JSON.
    """
    text = redact(text)
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    return "".join(
        one
        if one.isprintable() and not _UNSEEN.match(one)
        else json.dumps(one)[1:-1].replace("\x7f", r"\u007f")
        for one in text
    )


def redact_nested(value: Any, name: str = "") -> Any:
    """Redact all strings in nested mappings and lists; mask values whose key names a secret."""
    if isinstance(value, Mapping):
        return {redact(str(key)): redact_nested(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_nested(inner, name) for inner in value]
    if isinstance(value, str):
        return MASK if value and says_secret(name) else redact(value)
    return value


@lru_cache(1000)  # most of the time, of the environment's names
def says_secret(name: str) -> bool:
    """Return whether an option or variable with this name holds a secret."""
    plain = _plain(name)
    return plain == "KEY" or plain.endswith("_KEY") or bool(_SECRET_NAME.search(plain))


def holds_secret(name: str, value: str) -> bool:
    """Return whether an environment variable is secret, by its name or by its value."""
    return _names_secret(name) or redact(value) != value


@lru_cache(1000)
def _names_secret(name: str) -> bool:
    return says_secret(name) and not _PLACE_NAME.search(name.upper())


def _secret_values(environ: Mapping[str, str]) -> list[str]:
    """Return the secrets of the environment, longest first, because one may contain another."""
    values: set[str] = set()
    for name, value in environ.items():
        is_long_enough = len(value) >= 12 or (len(value) >= 8 and any(map(str.isdigit, value)))
        if is_long_enough and _names_secret(name):
            encoded = (
                quote(value, safe=""),
                quote(value),
                quote_plus(value),
                json.dumps(value)[1:-1],
            )
            values |= {value, *encoded}
    return sorted(values, key=len, reverse=True)


def _plain(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper().replace("-", "_").replace(".", "_")


def _without_userinfo(found: re.Match[str]) -> str:
    scheme, slashes, userinfo = filter(None, found.groups())
    is_login = _LOGIN.fullmatch(scheme) and ":" not in unquote(unquote(userinfo))
    return found[0] if is_login else f"{scheme}{slashes}{MASK}"


def _secret_value(pair: re.Match[str]) -> re.Match[str] | None:
    """Return the value of a pair, after its opening quote (group 1), if the name says secret."""
    text, link, end = pair.string, pair[2].strip(), pair.end()
    before = re.sub(r"\\u00(26|3[bf])", "&", text[max(0, pair.start() - 9) : pair.end(1)])
    before, mark, name = re.split(r"(^|[^\w.-])(?=[\w.-]*$)", unquote(unquote(unquote(before))))
    name, in_query = _plain(name), mark in tuple("?&;#~")
    is_secret, quoted = bool(_SECRET_NAME.search(name)), _QUOTED.match(text, end)
    if link[-1] in ":,":
        is_header = bool(_HEADER_NAME.search(name))
        if len(link) > 1:  # after the quote that ends the name
            return quoted if is_header or (is_secret and link[-1] == ":") else None
        return _HEADER_VALUE.match(text, end) if is_header else None
    if not is_secret and not (in_query and _QUERY_NAME.search(name)):
        return None
    value = _ENCODED_VALUE if link != "=" else _QUERY_VALUE if in_query else _VALUE
    return quoted or value.match(text, end)
