"""HTML pages as trees, for tests."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"br", "hr", "img", "link", "meta"})


@dataclass
class Node:
    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: "list[Node | str]" = field(default_factory=list)

    def all(self, tag: str | None = None, **attributes: str) -> "Iterator[Node]":
        """Yield the elements below with this tag and these attributes, in order."""
        for child in self.children:
            if isinstance(child, Node):
                wanted = {name.rstrip("_"): value for name, value in attributes.items()}
                if tag in (None, child.tag) and wanted.items() <= child.attributes.items():
                    yield child
                yield from child.all(tag, **attributes)

    def one(self, tag: str | None = None, **attributes: str) -> "Node":
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def text(self) -> str:
        """The visible text, with a space between elements."""
        parts = (
            child.text if isinstance(child, Node) else child
            for child in self.children
            if isinstance(child, str) or child.tag not in ("script", "style")
        )
        return " ".join(" ".join(parts).split())

    def cells(self) -> list[list[str]]:
        """The rows of a table."""
        return [
            [cell.text for cell in row.children if isinstance(cell, Node)] for row in self.all("tr")
        ]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def parsed(html: str) -> Node:
    """Return the page's tree. Every element must be closed in the right place."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert len(parser._open) == 1, "an element is never closed"
    return parser.root
