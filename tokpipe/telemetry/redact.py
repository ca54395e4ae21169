"""Masks secrets in text that leaves the process, and shows text of any origin as it is."""

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"

_USERINFO = re.compile(
    r"(?<![\w+.-])(?!(?:abfss?|wasbs?|adl?|az|(?:web)?hdfs|sftp|ssh|smb)://[^:/\s@]*@)"
    r"((?:[A-Z][A-Z0-9+.-]*:|(?<![:/\\]))(?:\\?/){2})[^/\s?#'\"<>]+@",
    re.IGNORECASE,
)
"""Except ``container@account`` and ``login@host``, which are not secret without a colon."""
_ISSUED = re.compile(
    r"(?<![^\W_])(?:gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|gl(?:pat|oas|[dfrw]t|cbt|ptt|imt|soat)-[\w-]{20,}"
    r"|hf_[A-Za-z0-9]{30,}|A[KS]IA[A-Z0-9]{16}|xox[a-z]-[\w-]{10,}|xapp-[\w-]{20,}|AIza[\w-]{30,}"
    r"|(?:sk|rk)_(?:live|test)_\w{16,}|npm_[A-Za-z0-9]{30,})()"
    r"|((?<![\w.-])hooks?\.[\w.-]++/|/webhooks?\w*/|/bot(?=\d+:))[^\s?#'\"<>]+"
)
"""Tokens that their issuers mark, and the addresses of webhooks, which are secret as a whole."""
_ENCODED = re.compile(r"(?<![\w.%~*:+-])[\w.%~*:+-]*%(?:25)*(?:3D|40)[\w.%~*:+-]*", re.IGNORECASE)
_FORM = re.compile(
    r"(\b(?:(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]{0,30}(?:key|secret|signature|token))"
    r"(?:: ?|['\"], ?b?['\"]))(?:(?:Bearer|Basic|Token) [^\s'\"<>,]+|[^\n'\"<>]+)"
    r"|(\bBearer )(?=\S*[\d.])[\w.~+/=-]{8,}|([?&]verify=)\d{9,}-[\w%+/=-]+"
    r"|()(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
    re.IGNORECASE,
)
_PAIR = re.compile(r"(?<![\w.%+[\]-])(?:(?<=\\)u00(?:26|3f))?([\w.%+[\]-]++)( ?= ?|\\*[\"'] ?: ?)")
_VALUE = re.compile(
    r"(b?(\\*[\"']))(?:(?!\2)(?:\\.|[^\"\n\\]))+(?=\2)"
    r"|((?:b?\\*[\"'])?)(?:[^\s&'\"<>\\;]|\\[^\s'\"]|;(?![\w.%-]+=))+"
)
_SECRET_NAME = re.compile(
    r"SECRET|(?<!PAGE)(?<!PAGE_)(?<!NEXT_)(?<!CONTINUATION_)(?<!NUM_)(?<!MAX_)TOKENS?(_|$)|COOKIE|"
    r"PASSW(OR)?D|PASSPHRASE|CREDENTIAL|SIGNATURE(?!_V)|AUTHORIZATION|CONNECTION_?STRING|SAS(_|$)|"
    r"JWT|HMAC|(^|_)PASS$|_PWD$|A(CCESS|PI)_?KEY|"
    r"(ACCOUNT|APP|AUTH|CLIENT|LICENSE|MASTER|PRIVATE|SERVICE|SHARED|SIGNING|STREAM)_?KEY$"
)
_OPTION_NAME = re.compile(r"(^|_)(KEY|PAT|SK|AUTH(_CONFIG)?)$")  # Of options and variables, too
_QUERY_NAME = re.compile(
    r"TOKEN(?!I)(?!S?$)|AUTH(?!OR|EN|USER|_?TYPE)|^(KEY|CODE|PIN|NONCE|POLICY|SE|OH|HM)$|"
    r"(^|_)(SIG|LSIG|SIGN|PWD|PAT|TOK|BEARER|TICKET|OTP|SID|[CX]SRF|SK[OT]ID|HDN(EA|T[LS]))$|"
    r"(^|_|J|PHP)SESS(ION)?_?(ID)?$|KEY_PAIR_ID|ACCESS_?(KEY_?)?ID|RES(OURCE)?_?KEY|RL_?KEY|"
    r"(?<!OBJECT)(?<!SORT)(?<!CACHE)(?<!PUBLIC)_KEY$|Q_AK$|^X_(AMZ|BCE|COS|GOOG|OBS|OSS|TOS)_"
)
"""Further names that are secret in a query: those of presigned URIs and sessions."""
_DIGEST_NAME = re.compile(r"^(MD5|SHA\d+|HASH|DIGEST|H|HS|S|ST|T|VT)$")
_EXPIRES = re.compile(r"[?&;](?:e|exp|expires?|expiry|ttl)=\d", re.IGNORECASE)
"""A digest in a query that expires signs it."""
_PLACE_NAME = re.compile(r"(_FILE|_PATH|_DIR|_URI|_URL|_ENDPOINT|_PROVIDER)$|^GOOGLE_APPLICATION_")
"""Variables that hold the place of a secret, not the secret."""
_LOGIN_NAME = re.compile(r"WEBHOOK|(^|_)DSN$|(DATABASE|DB)_UR[IL]$")
_PASSWORD = re.compile(r"\w[\w+.-]*://[^\s/:@]*:([^\s/]+)@")
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]")


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return ``text`` with every secret replaced by ``***``. Idempotent.

    Secrets are userinfo in URIs, what signs their queries and paths (of S3, GCS, Azure and CDNs),
    webhooks, tokens such as ``ghp_...``, values of names such as ``password``, of headers such as
    ``Authorization``, and of environment variables with names such as ``HF_TOKEN``, also in URL
    encoding. Short or simple values of variables are kept.
    """
    for value in _secret_values(os.environ if environ is None else environ):
        text = text.replace(value, MASK)
    return _masked(_ENCODED.sub(_masked_inside, text))


def printable(text: str, keep: str = "") -> str:
    """Mask secrets, and escape (as JSON does) whatever a reader would not see as it is: controls,
    line breaks, marks that reorder or hide text, and blanks other than the space."""
    return "".join(
        one
        if one in keep or (one.isprintable() and not _UNSEEN.match(one))
        else ascii(one)[1:-1].replace(r"\x", r"\u00")
        for one in redact(text)
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


def says_secret(name: str) -> bool:
    """Return whether an option or variable with this name holds a secret."""
    plain = _plain(name)
    return bool(_OPTION_NAME.search(plain) or _SECRET_NAME.search(plain))


def holds_secret(name: str, value: str) -> bool:
    """Return whether an environment variable is secret, by its name or by its value."""
    return _names_secret(name) or redact(value) != value


@lru_cache(1000)  # of the environment, for every text
def _names_secret(name: str) -> bool:
    name = name.upper()
    return bool(_LOGIN_NAME.search(name) or (says_secret(name) and not _PLACE_NAME.search(name)))


def _secret_values(environ: Mapping[str, str]) -> list[str]:
    """Return the secrets of the environment, longest first, because one may contain another."""
    values: set[str] = set()
    for name, text in environ.items():
        for value in [*_PASSWORD.findall(text), *([text] if _names_secret(name) else [])]:
            if len(value) >= 12 or (len(value) >= 8 and any(map(str.isdigit, value))):
                values |= {value, quote(value, safe=""), quote(value), json.dumps(value)[1:-1]}
    return sorted(values, key=len, reverse=True)


def _masked_inside(encoded: re.Match[str]) -> str:
    """Mask a URI in the query of another one, percent-encoded once or more often."""
    text = unquote(unquote(unquote(encoded[0])))
    return encoded[0] if (shown := _masked(text)) == text else quote(shown, safe="*")


def _masked(text: str) -> str:
    text = _USERINFO.sub(rf"\1{MASK}@", text)
    for form in (_FORM, _ISSUED):
        text = form.sub(lambda found: f"{found[found.lastindex or 0]}{MASK}", text)
    expires = _EXPIRES.search(text)
    parts, end = [], 0
    for pair in _PAIR.finditer(text):
        *outer, name = re.split(r"[^\w\s.+[\]-]", unquote(unquote(pair[1])))
        in_query = outer or text[max(0, pair.start() - 1) : pair.start(1)][:1] in tuple("?&;#~\\")
        name = _plain(name)
        is_secret = _SECRET_NAME.search(name) or (
            in_query and (_QUERY_NAME.search(name) or (expires and _DIGEST_NAME.search(name)))
        )
        value = _VALUE.match(text, pair.end()) if is_secret and pair.start() >= end else None
        if value and ("=" in pair[2] or value[1]):
            parts += [text[end : pair.end()], value[1] or value[3], MASK]
            end = value.end()
    return "".join([*parts, text[end:]])


def _plain(name: str) -> str:
    name = re.sub(r"\[\d*\]$", "", name)
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", "_", name).strip("_").upper()
