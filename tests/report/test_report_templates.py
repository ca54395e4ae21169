"""The templates of a report, also where no test's output leads."""

import pytest
from jinja2 import UndefinedError, nodes
from jinja2.meta import find_undeclared_variables

from tokpipe.report.page import environment

JINJA = environment()
GIVEN = {"facts", "style", "style_hash", *JINJA.globals}
SHARED = {"status", "totals"}
"""What page.html sets for the templates that it includes."""


def parsed(name: str) -> nodes.Template:
    assert JINJA.loader is not None
    return JINJA.parse(JINJA.loader.get_source(JINJA, name)[0])


@pytest.mark.parametrize("name", JINJA.list_templates())
def test_a_template_uses_only_names_and_filters_that_exist(name: str) -> None:
    tree = parsed(name)
    own = {one.name for one in tree.find_all(nodes.Name) if one.ctx == "store"}
    assert find_undeclared_variables(tree) <= GIVEN | SHARED | own
    assert {one.name for one in tree.find_all(nodes.Filter)} <= JINJA.filters.keys()


def test_only_the_style_and_pictures_are_filled_in_unescaped() -> None:
    unescaped = []
    for name in JINJA.list_templates():
        tree = parsed(name)
        assert not list(tree.find_all(nodes.ScopedEvalContextModifier)), f"{name} sets autoescape"
        safe = [one.node for one in tree.find_all(nodes.Filter) if one.name == "safe"]
        unescaped += [(name, getattr(one, "name", None)) for one in safe]
    assert unescaped == [("page.html", "style"), ("pairs.html", "base64"), ("pairs.html", "base64")]


@pytest.mark.parametrize("missing", ["fact", "facts.fact", "facts['fact']"])
def test_a_value_that_is_missing_is_an_error(missing: str) -> None:
    with pytest.raises(UndefinedError, match="'fact'"):
        JINJA.from_string(f"{{{{ {missing} }}}}").render(facts=object())
