"""Redaction masks every secret and nothing else."""

import json
from urllib.parse import quote

import pytest

from tokpipe.telemetry.redact import holds_secret, printable, redact, redact_nested, says_secret

ENVIRON = {
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtnFEMI+K7MDENG",
    "AWS_SESSION_TOKEN": "session0123456789",
    "AZURE_STORAGE_ACCOUNT_KEY": "azure+key/12345==",
    "HF_TOKEN": "hf_abcdefghijkl",
    "DB_PASSWORD": "pw123456",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://ann:pw@host/a.mp4", "ftp://***@host/a.mp4"),
        ("https://h/a?x=1&X-Amz-Signature=abc&y=2", "https://h/a?x=1&X-Amz-Signature=***&y=2"),
        ("https://h/a?X-Amz-Security-Token=a%2Fb", "https://h/a?X-Amz-Security-Token=***"),
        ("https://h/a?X-Goog-Signature=ab12", "https://h/a?X-Goog-Signature=***"),
        ("https://h/a?sv=1&sig=a%3D", "https://h/a?sv=1&sig=***"),
        ("url='https://h/a?token=t', s", "url='https://h/a?token=***', s"),
        ("https://h/a?api_key=t&password=u", "https://h/a?api_key=***&password=***"),
    ],
)
def test_secrets_in_uris_are_masked(text: str, shown: str) -> None:
    assert redact(text, {}) == shown
    assert redact(shown, {}) == shown


def test_values_of_secret_variables_are_masked_also_when_url_encoded() -> None:
    for value in ENVIRON.values():
        text = redact(f"Error('bad {value}!') at line 3", ENVIRON)
        assert text == "Error('bad ***!') at line 3"
        assert redact(f"s3://b/{quote(value, safe='')}", ENVIRON) == "s3://b/***"


def test_other_text_is_unchanged() -> None:
    weights = "s3://bucket/tokenizers/a.safetensors"
    environ = {
        "TOKENIZER_WEIGHTS": weights, "GOOGLE_APPLICATION_CREDENTIALS": "/data/a",
        "USE_TOKEN": "true", "HOME": "/data/a/home",
    }  # fmt: skip
    for text in (
        *("abfs://container@account.dfs.core.windows.net/a", weights, "12:30 user: a@b"),
        *("https://host:8080/a@b.mp4?v=abc&t=10", "/data/a?tokenizer=movqgan", "true"),
    ):
        assert redact(text, environ) == text


def test_names_of_secrets_are_known() -> None:
    secret = {"key", "aws_secret_access_key", "secretKey", "session-token", "account_key", "sas"}
    others = {"endpoint_url", "region_name", "tokenizer", "monkey", "anon", "signature_version"}
    others |= {"RAY_AUTH_MODE", "DISK", "AUTHOR", "PATH", "auth_type", "path"}
    others |= {"client_key_path", "PWD", "SSH_AUTH_SOCK", "XDG_SESSION_ID", "GIT_ASKPASS"}
    assert {name for name in secret | others if says_secret(name)} == secret


def test_nested_values_are_masked_by_content_and_by_name() -> None:
    settings = {
        "sources": [{"uri": "ftp://ann:pw@host/a.mp4"}],
        "options": {"secret": "plain", "keys": ["a"], "api_key": ["b", "c"]},
        "fps": 8.0,
    }
    assert redact_nested(settings) == {
        "sources": [{"uri": "ftp://***@host/a.mp4"}],
        "options": {"secret": "***", "keys": ["a"], "api_key": ["***", "***"]},
        "fps": 8.0,
    }


SECRET = "c4nary.S3cret-0"
KEYS = (
    "token access_token accessToken id_token jwt hmac session sessionid pass passwd password pwd "
    "sig sign signature key apikey auth authkey client_secret credential X-Amz-Credential se "
    "X-Amz-Security-Token X-Goog-Signature X-Goog-Credential X-Oss-Signature sktid skoid "
    "Policy Signature Key-Pair-Id AWSAccessKeyId OSSAccessKeyId GoogleAccessId hdnts hdnea "
    "__token__ bcdn_token wowzatokenhash lsig oh q-signature auth_key resourcekey rlkey tempauth "
    "jsessionid wmsAuthSign bearer pat service_key ticket code otp sid csrf xsrf pin nonce tok "
    "token[] auth[token] key[0] sig[] streamKey license_key client-auth x_auth private_pat"
)


@pytest.mark.parametrize("key", KEYS.split())
def test_parameters_that_give_access_are_masked_however_they_are_written(key: str) -> None:
    encoded = "".join(f"%{ord(letter):02x}" for letter in key)
    for name in {key, key.upper(), key.lower(), key.replace("-", "%2D"), encoded}:
        for before, after in (
            ("https://h/a?", "&v=1"), ("https://h/a?v=1&", ""), ("https://h/a#x=1&", ""),
            ("https://h/a#", ""), ("https://h/a?x=1;", ";v=2"), ("https://h/a?x=1&amp;", "&v=2"),
            ('{"url": "https://h/a?', '&v=1"}'), ("URL('https://h/a?x=1&", "&v=1') failed"),
            ("simplecache::https://h/a?", "::x"), ("https://h/a;", ""),
        ):  # fmt: skip
            text = f"{before}{name}={SECRET}{after}"
            shown = redact(text, {})
            assert SECRET not in shown, text
            assert shown.startswith(f"{before}{name}=***")
            assert redact(shown, {}) == shown
            for inner in (quote(text, safe=""), quote(quote(text, safe=""))):
                assert SECRET not in redact(f"https://p/?u={inner}&v=1", {}), inner
        json.loads(redact(json.dumps({"a": f'url "https://h/?{name}={SECRET}"'}), {}))


def words(table: str) -> list[str]:
    return table.strip().replace("\n", " | ").split(" | ")


FORMS = r"""
https://{}@h/a.mp4 | https://{}:@h/a.mp4 | https://:{}@h/a.mp4 | https://ann:{}@h/a?x=1
https://a%40b:{}@h/ | HTTPS://ann:x@{}@h/ | ftp://{}@h/ | abfs://a:{}@h/ | sftp://a:{}@h/
filecache::https://{}@h/a | https:\/\/ann:{}@h\/a | https://p/?u=https%3A%2F%2F{}%40h%2Fa
https://p/?u=https%253a%252f%252fann%253A{}%2540h | https://h/a?hdnts=exp=1~acl=/*~hmac={}
https://h/exp=1~acl=/*~hmac={}/a.mp4 | https://h/bcdn_token={}&expires=1/a.mp4
https://h/a?verify=1700000000-{} | https://h/a?x=1\u0026sig={}\u0026v=2
https://h/eyJhbGciOiJI.eyJzdWIiOiIx.{}/a.m3u8 | Authorization: Bearer {} | authorization: {}
https://h/a?md5={}&expires=1700000000 | https://h/a?st={}&e=1700000000 | https://h/a?e=1&s={}
https://h/a?hash={}&exp=17 | https://h/a?TOKEN%20={} | https://h/a?token+={} | //ann:{}@h/a
https://h/a?token%5B%5D={} | https://h/a?u[0][token]={}&v=1 | see //{}@h/a | url=\/\/ann:{}@h
https://h/a?u=%2F%2Fann:{}%40h | https://hooks.slack.com/services/T0/B0/{} | wss://hook.h.io/{}
https://discord.com/api/webhooks/12/{} | https://x.webhook.office.com/webhookb2/{}@a/b
https://api.telegram.org/bot12:{}/sendVideo
{'Authorization': 'Basic {}'} | ('Authorization', 'Bearer {}') | {"authorization":"Bearer {}"}
[(b'Authorization', b'{}')] | Proxy-Authorization: Basic {} | Cookie: a=b; sid={}
<CIMultiDict('Set-Cookie': 's={}')> | X-Amz-Security-Token: {} | x-api-key: {}
curl -H 'Authorization: token {}' https://h
Authorization: AWS4-HMAC-SHA256 Credential=AKIA/s3, SignedHeaders=host, Signature={}
BasicAuth(login='ann', password='{} x', encoding='latin1') | S3FileSystem(secret='{}')
aws_secret_access_key={} | AccountName=a;AccountKey={};EndpointSuffix=core | token="{}"
ClientError(sas_token='?sv=1&sig={}') | password = {} | {\"client_secret\": \"{}\"}
Session(aws_session_token={}, region='x') | no Bearer {} here | connection_string={};x
'refresh_token': '{}'
"""


@pytest.mark.parametrize("form", words(FORMS))
def test_forms_of_secrets_are_masked(form: str) -> None:
    shown = redact(form.replace("{}", SECRET), {})
    assert SECRET not in shown
    assert "***" in shown
    assert redact(shown, {}) == shown


ISSUED = (
    *(f"{start}{'aB3' * 13}" for start in ("ghp_", "gho_", "ghs_", "github_pat_11", "hf_", "npm_")),
    *(f"{start}aB3-{'x_9' * 9}" for start in ("glpat-", "glrt-", "xoxb-", "xapp-", "AIza")),
    *("AKIA0123456789ABCDEF", "ASIA0123456789ABCDEF", "sk_live_0123456789abcdef"),
)


@pytest.mark.parametrize("token", ISSUED)
def test_tokens_that_their_issuers_mark_are_masked_wherever_they_are(token: str) -> None:
    for before, after in (
        ("https://h/", "/a.mp4"), ("https://h/a?v=", "&w=1"), ("s3://b/x-", ".mp4"), ("", ""),
        ("error: '", "' is expired"), ('{"a": "', '"}'), ("/data/a_", "/b"), ("x=", ";y"),
    ):  # fmt: skip
        shown = redact(f"{before}{token}{after}", {})
        assert shown.startswith(f"{before}***")
        assert token[8:] not in shown
        assert redact(shown, {}) == shown


@pytest.mark.parametrize(
    "name",
    [
        *("GITHUB_PAT", "NPM_AUTH", "DOCKER_AUTH_CONFIG", "DATABASE_URL", "APP_DATABASE_URL"),
        *("SLACK_WEBHOOK", "SLACK_WEBHOOK_URL", "SENTRY_DSN", "STRIPE_SK"),
    ],
)
def test_values_of_variables_are_masked_by_their_last_words(name: str) -> None:
    assert redact(f"https://h/{SECRET}/a", {name: SECRET}) == "https://h/***/a"
    assert holds_secret(name, SECRET)


def test_the_password_in_an_address_of_a_variable_is_masked_alone() -> None:
    for name in ("DATABASE_URL", "BROKER", "CELERY_RESULT_URI"):
        assert redact(f"bad {SECRET}!", {name: f"postgres://ann:{SECRET}@h:5432/db"}) == "bad ***!"
        assert holds_secret(name, f"postgres://ann:{SECRET}@h:5432/db")


HARMLESS = (
    "v id t list index pageToken page_token nextPageToken next_token continuation_token n q e "
    "st sv expires author keyword keyframe monkey object_key bypass compass design passage "
    "md5 hash s author_id authority authuser auth_type sort_key cache_key publicKey country_code "
    "codec qrcode ticket_id sidecar patch path pinned sign_in "
    "session_index tokenizer num_tokens signal authority seed seconds range policy_id versionId"
)
PLAIN = """
https://h/a?v=1&t=10#t=5 | https://h:443/a@b.mp4 | abfs://c@a.dfs.core.windows.net/x
hf://datasets/ann/set@main/a.mp4 | sftp://ann@h/a.mp4 | s3://b/a=1/b=2/key=3.mp4 | https://@h/
https://p/?u=https%3A%2F%2Fh%2Fa%3Fv%3D1%26t%3D2 | a.tar#clip key=1.mp4 | token: unexpected end
key=lambda row: row | user=ann, session=3 | {"num_tokens": 5, "tokenizer": "a"}
https://h/hf_hub/xoxo/glob-a/AKIA.mp4 | s3://b//a@b | /data/glass-of-water-falling-on-the-floor.mp4
https://h/hooks/webhook.mp4 | see // a@b
/data/ghp_a/hf_videos_of_cats_and_dogs_in_the_rain_2024.mp4 | x//y@z/a | zip:///a@b::file:///c
no password: access denied | Bearer authentication | ["token", "codes"]
"""


@pytest.mark.parametrize(
    "text", [*words(PLAIN), *(f"https://h/w?{name}=dQw4w9WgXcQ" for name in HARMLESS.split())]
)
def test_what_is_harmless_is_unchanged(text: str) -> None:
    assert redact(text, {}) == text


HIDDEN = (
    *("\x00", "\x07", "\x1b]8;;http://evil\x07", "\x1b[2J", "\x9b31m", "\x7f", "\r", "\n", "\t"),
    *("\x85", "\u2028", "\u2029", "\u202e", "\u2066", "\u200f", "\u061c", "\u200b", "\u200d"),
    *("\ufeff", "\xa0", "\xad", "\u2060", "\u3164", "\ufe0f", "\u115f", "\udc80", "\U000e0041"),
)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_what_is_not_seen_as_it_is_is_escaped(hidden: str) -> None:
    shown = printable(f"a{hidden}b")
    assert shown.isascii()
    assert shown.isprintable()
    assert printable(shown) == shown
    assert shown.encode().decode("unicode_escape") == f"a{hidden}b"
    assert json.loads(printable(json.dumps(hidden, ensure_ascii=hidden != "\x7f"))) == hidden


def test_ordinary_text_is_shown_as_it_is() -> None:
    text = "katze-\u00e4 \u732b \U0001f600 [red]:smile: C:\\a 100 % \u2501"
    assert printable(text) == text
