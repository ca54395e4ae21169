"""Makes one site of the pages in docs/ and of the files of the repository that they link to.

A hook of MkDocs (mkdocs.yml). README.md is the site's first page; every other file outside docs/
that a page links to becomes a page below project/: Markdown as it is, anything else as a listing.
Links are rewritten to match. A link to nothing stays as it is, and fails the build. The link to
the repository is where this clone came from.
"""

import posixpath
import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ALSO = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
"""Pages whether something links to them or not."""
ASSETS = ("site.css", "iframe-worker.js")
"""Files beside this one that the pages load."""
_LINK = re.compile(r"(?<=\]\()(?![a-z][a-z0-9+.-]*:|#)([^)#\s]+)(?=[)#])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    git = ["git", "-C", str(ROOT), "config", "--get", "remote.origin.url"]
    try:
        origin = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        return config
    config.repo_url = web_address(origin)
    config.repo_name = "Repository"
    return config


def web_address(origin: str) -> str | None:
    """The page of a repository on its host, without names and passwords; None for a folder.

    ``git@host:team/name.git``, ``ssh://git@host/team/name`` and ``https://host/team/name.git``
    all have the page ``https://host/team/name``.
    """
    remote = re.fullmatch(
        r"(?:(?:https?|ssh|git)://)?(?:[^@/]*@)?([\w.-]+\.\w+)(?::\d+)?[:/]/?(.+?)(?:\.git)?/?",
        origin,
    )
    return f"https://{remote[1]}/{remote[2]}" if remote else None


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Keep the theme from asking the repository's host for its number of stars."""
    return output.replace(' data-md-component="source"', "")


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark inline code that is one short word, for site.css."""
    return re.sub(r"<code>(?=[^<\s]{1,40}</code>)", '<code class="word">', html)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for name in ASSETS:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / "infra" / name)))
    waiting = [*ALSO, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        if not name.startswith("docs/"):
            files.append(_page(name, config))
        if not name.endswith(".md"):
            continue
        for link in _LINK.findall((ROOT / name).read_text()):
            target = _target(name, link)
            if target not in seen and (ROOT / target).is_file():
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    if here == "index.md":
        name = "README.md"
    else:
        name = here.removeprefix("project/") if here.startswith("project/") else f"docs/{here}"
    if not name.endswith(".md") or not (ROOT / name).exists():
        return markdown  # a listing

    def rewritten(match: re.Match[str]) -> str:
        place = _place(_target(name, match[1]))
        if files.get_file_from_path(place) is None:
            return match[1]
        return posixpath.relpath(place, posixpath.dirname(here))

    return _LINK.sub(rewritten, markdown)


def _target(name: str, link: str) -> str:
    """A link's path from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


def _place(name: str) -> str:
    """Where a file of the repository is within the site's pages."""
    if name == "README.md":
        return "index.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return f"project/{name}" if name.endswith(".md") else f"project/{name}.md"


def _page(name: str, config: MkDocsConfig) -> File:
    if name.endswith(".md"):
        return File.generated(config, _place(name), abs_src_path=str(ROOT / name))
    kind = Path(name).suffix.lstrip(".") or Path(name).name.lower()
    code = (ROOT / name).read_text()
    head = "---\nsearch: {exclude: true}\n---\n"
    text = f"{head}\n# {name}\n\n````{kind}\n{code}\n````\n"
    return File.generated(config, _place(name), content=text)
