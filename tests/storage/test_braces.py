"""Braces in patterns mean what they mean in bash."""

import shutil
import subprocess

import pytest

from tokpipe.errors import ConfigError
from tokpipe.storage.listing import expand_braces

TEXTS = [
    *("a{b,c}d", "{000..003}.tar", "a,b{1..3}x{y,z}", "x{,y}", "{a,}b{}", "é{ü,ö}", "{a b,c}"),
    *("{1..10..3}", "{10..1..3}", "{01..-3}", "{-05..5..5}", "{007..9}", "{0..1..0}", "{5..5}"),
    *("{a..e..2}", "{e..a}", "{a..c..-1}", "{a,b{1..3}}", "{{a,b},c}", "a{1{2,3},{4..5}}"),
    *("{abc}", "{}", "{a", "a}", "{a,{b,c}", "a{1,2}}", "{{1..2},x}", "{x,y}}", "{1..a}", "{1..}"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_braces_expand_as_in_bash(text: str) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    quoted = text.replace(" ", "\\ ")
    printed = subprocess.run(
        [bash, "-fc", f"printf '%s\\n' {quoted}"], capture_output=True, text=True, check=True
    )
    assert expand_braces(text) == printed.stdout.splitlines()


def test_webdataset_ranges_keep_their_order_and_their_zeros() -> None:
    names = expand_braces("s3://b/{train,val}-{000008..000011}.tar")
    assert names[:3] == [f"s3://b/train-{number:06}.tar" for number in (8, 9, 10)]
    assert len(names) == 8


@pytest.mark.parametrize("text", ["{0..9999999999}", "{0..999}{0..999}", "{a,b}" * 30, "{" * 170])
def test_too_many_alternatives_are_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"more than 100,000 names.* Use '\*'"):
        expand_braces(text)
