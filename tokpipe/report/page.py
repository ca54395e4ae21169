"""The page: ``templates/`` has its elements and words, filled with the facts."""

import base64
import hashlib
from functools import partial
from importlib.resources import files
from statistics import fmean, median_low

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

import tokpipe
from tokpipe.formats.checks import utc_time
from tokpipe.formats.job_record import flatten
from tokpipe.report import charts
from tokpipe.telemetry.human import counted, duration, short, size_text, slow_text
from tokpipe.telemetry.redact import printable, redact_nested


def page(facts: object) -> str:
    """Return a ``WrittenReport`` as HTML: text of the output is escaped, and secrets are masked."""
    style = files("tokpipe.report").joinpath("style.css").read_text("utf-8")
    digest = _base64(hashlib.sha256(style.encode()).digest())
    template = environment().get_template("page.html")
    return template.render(facts=facts, style=style, style_hash=f"sha256-{digest}")


def environment() -> Environment:
    """Return what the templates are rendered with: escaping, filters and functions."""
    jinja = Environment(
        loader=PackageLoader("tokpipe.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {
        "base64": _base64,
        "counted": counted,
        "duration": duration,
        "flat": flatten,
        "mean": fmean,
        "median": median_low,
        "moment": _moment,
        "number": _number,
        "redacted": redact_nested,
        "short": short,
        "size": size_text,
        "slow_text": slow_text,
        "yaml": partial(yaml.safe_dump, sort_keys=False, allow_unicode=True, width=88),
    }
    jinja.globals |= {"charts": charts, "version": tokpipe.__version__}
    return jinja


def _shown(value: object) -> object:
    """Mask secrets in whatever a template fills in, and escape what a reader would not see.

    An output may have been written by a version that recognized fewer secrets.
    """
    is_markup = hasattr(value, "__html__")  # The parts of it were masked already
    return value if is_markup else printable(str(value), keep="\n")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _moment(time: str) -> str:
    """Format an ISO 8601 time for people, in UTC."""
    return f"{utc_time(time):%Y-%m-%d %H:%M:%S} UTC"


def _number(value: float | None, spec: str = ",") -> str:
    """Format a number as ``format`` does; an unknown one as ``-``."""
    return "-" if value is None else format(value, spec)
