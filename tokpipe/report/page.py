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
    jinja.filters |= {one.__name__: one for one in (counted, duration, short, slow_text)}
    jinja.filters |= {
        "base64": _base64,
        "flat": flatten,
        "mean": fmean,
        "median": median_low,
        "moment": lambda time: f"{utc_time(time):%Y-%m-%d %H:%M:%S} UTC",
        "number": lambda value, spec=",": "-" if value is None else format(value, spec),
        "redacted": redact_nested,
        "size": size_text,
        "yaml": partial(yaml.safe_dump, sort_keys=False, allow_unicode=True, width=88),
    }
    jinja.globals |= {"charts": charts, "version": tokpipe.__version__}
    return jinja


def _shown(value: object) -> object:
    """Mask secrets, also those that an older version wrote, and escape invisible characters."""
    is_markup = hasattr(value, "__html__")  # The parts of it were masked already
    return value if is_markup else printable(str(value), keep="\n")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
