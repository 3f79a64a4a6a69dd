"""Puts what lies outside docs/ on the site: README as its home, and every file that a page links to.

Links are written as they work in the repository. One that leads out of docs/ becomes a link to a copy on the site,
one to a folder a link to a page with its files, and one to a package of tfmetarec a link to its API reference.
"""

import re
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "serving/README.md": "serving_files.md",
    "configs/samples/README.md": "samples.md",
}
"""Pages of the site that are written elsewhere in the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, uri in PAGES.items():
        # Home has no neighbours that a column of its own would list.
        front = "---\nhide: [navigation]\n---\n" if uri == "index.md" else ""
        files.append(File.generated(config, uri, content=front + (ROOT / source).read_text(encoding="utf-8")))
    for file in [file for file in files if file.is_documentation_page()]:
        source = _source(file.src_uri)
        if (ROOT / source).is_file():
            _each_link(file.content_string, lambda target, source=source: _add(files, config, source, target))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    source = _source(uri)
    if not (ROOT / source).is_file():
        return markdown  # A generated page: its links are right.
    return _each_link(markdown, lambda target: relpath(_uri(_resolved(source, target)), dirname(uri) or "."))


def _source(uri: str) -> str:
    """Where a page of the site is written, from the root of the repository."""
    return {page: source for source, page in PAGES.items()}.get(uri, f"docs/{uri}")


def _resolved(source: str, target: str) -> str:
    return normpath(join(dirname(source), target))


def _uri(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path in PAGES or path.startswith("docs/"):
        return PAGES.get(path, path.removeprefix("docs/"))
    if package := re.fullmatch(r"tfmetarec/(\w+)(\.py)?", path):
        return f"api/{package[1]}.md"
    return f"files/{path}/index.md" if (ROOT / path).is_dir() else f"files/{path}"


def _each_link(markdown: str, change: Callable[[str], str]) -> str:
    """The text with the targets of relative links changed, outside of code blocks."""

    def changed(match: re.Match) -> str:
        return f"]({change(match[1])}{match[2] or ''})"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
    parts[::2] = [re.sub(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", changed, part) for part in parts[::2]]
    return "".join(parts)


def _add(files: Files, config: MkDocsConfig, source: str, target: str) -> str:
    """Puts the file or folder that a link leads to on the site; a dead link is left for MkDocs to report."""
    path = _resolved(source, target)
    uri = _uri(path)
    if not uri.startswith("files/") or files.get_file_from_path(uri):
        return target
    if (ROOT / path).is_file():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    elif (ROOT / path).is_dir():
        inside = [file for file in sorted((ROOT / path).iterdir()) if file.is_file()]
        for file in inside:
            if not files.get_file_from_path(f"files/{path}/{file.name}"):
                files.append(File.generated(config, f"files/{path}/{file.name}", abs_src_path=str(file)))
        files.append(File.generated(config, uri, content=_folder_page(path, inside)))
    return target


def _folder_page(path: str, inside: list[Path]) -> str:
    """Links to the files of a folder, and what configurations say."""
    shown = [file for file in inside if file.suffix == ".yaml"]
    lines = [f"# {path}", "", *[f"- [{file.name}]({file.name})" for file in inside if file not in shown]]
    for file in shown:
        code = file.read_text(encoding="utf-8").rstrip()
        lines += ["", f"## [{file.name}]({file.name})", "", "```yaml", code, "```"]
    return "\n".join(lines) + "\n"
