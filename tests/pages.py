"""What tests of the documentation share: its pages, their blocks of code, the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

REPOSITORY = Path(__file__).parents[1]


def pages() -> list[Path]:
    """Every Markdown file of the project."""
    folders = ("docs", "examples", "tests", "tokpipe", "infra")
    below = (path for folder in folders for path in (REPOSITORY / folder).rglob("*.md"))
    return sorted([*REPOSITORY.glob("*.md"), *below])


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    language: str
    title: str | None
    """The file that it is, for a block with ``title="..."``."""
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order. Indented ones are no code, but output."""
    blocks = []
    for token in MarkdownIt("commonmark").parse((REPOSITORY / page).read_text()):
        if token.type == "fence" and token.map is not None:
            language, _, rest = token.info.strip().partition(" ")
            title = re.fullmatch(r'title="(.+)"', rest.strip())
            named = None if title is None else title[1]
            blocks.append(Block(page, token.map[0] + 1, language, named, token.content))
    return blocks


def commands_of(code: str) -> list[list[str]]:
    """The simple commands of a block of shell, as words; assignments before them are left out."""
    commands: list[list[str]] = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip(";|&"):
                if words or not re.match(r"[A-Z_]+=", word):
                    words.append(word)
            else:
                commands.extend([words] if words else [])
                words = []
    return commands
