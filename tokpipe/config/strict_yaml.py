"""The YAML of job files and checkpoints: safe, without duplicate keys."""

from typing import Any

import yaml

from tokpipe.errors import ConfigError

MAX_BYTES = 2**19  # Settings take kilobytes, and parsing a thousand times their size in memory


class StrictLoader(yaml.SafeLoader):
    """Safe YAML with unique keys, dates as text, and no aliases, which can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"the alias *{event.anchor} is not read: write out what it stands for"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


def _unique_mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str) or key in seen:
            problem = f"key {key!r} {'appears twice' if isinstance(key, str) else 'is not text'}"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _bounded_integer(loader: StrictLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > 100:  # Python does not even print integers of more than 4,300 digits
        problem = "an integer has more than 100 digits"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return int(loader.construct_yaml_int(node))


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
StrictLoader.add_constructor("tag:yaml.org,2002:int", _bounded_integer)
StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_mapping(text: str | bytes, name: str, what: str = "file of settings") -> dict[str, Any]:
    """Parse YAML that must hold a mapping at its top level. Errors start with ``name``."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{name}: has more than {MAX_BYTES:,} bytes, so it is not a {what}")
    try:
        data = yaml.load(text, Loader=StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(
            f"{name}: is not valid YAML, near line {1 + (mark.line if mark else 0)}: "
            f"{error.problem}; check the indentation, and put text with other characters in quotes"
        ) from error
    except (AttributeError, LookupError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{name}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: is not a {what}: it holds no keys with values")
    return data
