"""The documentation is built as `make docs` builds it, and read as a browser would read it."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer
import yaml

import tfmetarec as tmr
from tfmetarec.cli import app
from tfmetarec.config import Config

pytest.importorskip("mkdocs", reason="needs mkdocs: pip install 'tfmetarec[docs]'")

ROOT = Path(__file__).parents[2]
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
"""What a browser fetches by itself; of a `link`, all but what it only tells."""


class Reader(HTMLParser):
    """What a page holds: ids to jump to, links to follow, and addresses that are fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in FETCHED and FETCHED[tag] in found:
            self.fetched.append(found[FETCHED[tag]])
        if tag == "link" and found.get("rel") not in ("next", "prev", "canonical"):
            self.fetched.append(found["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The site, and what its build said."""
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return folder, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def pages(built: tuple[Path, str]) -> dict[str, Reader]:
    """Every page by its address below the site."""
    site = built[0]
    return {path.relative_to(site).as_posix(): Reader(path.read_text()) for path in site.rglob("*.html")}


def test_the_build_says_nothing_but_that_it_is_done(built: tuple[Path, str]) -> None:
    assert not re.search("WARN|ERROR|DEPRECAT", built[1].upper()), built[1]


def public_names() -> list[str]:
    found = [f"tfmetarec.config.{name}" for name in ("load", "with_values", "value_of", "ConfigError")]
    for name in tmr.__all__:
        module = getattr(tmr, name)
        found += [f"{module.__name__}.{member}" for member in getattr(module, "__all__", [])]
    baselines = tmr.models.baselines
    return found + [f"{baselines.__name__}.{member}" for member in baselines.__all__]


@pytest.mark.parametrize("package", [*tmr.__all__, "models.baselines", "config"])
def test_every_public_name_is_on_the_page_of_its_package(package: str, pages: dict[str, Reader]) -> None:
    names = [name for name in public_names() if name.rpartition(".")[0] == f"tfmetarec.{package}"]
    page = pages[f"api/{package}.html"]
    assert [name for name in names if name not in page.ids] == []
    # Of a module what has a docstring is public.
    modules = {"experiment": ("train", "evaluate", "tune", "load_learner"), "crossing": ("prepare", "fit", "evaluate")}
    assert names or package in modules
    assert {f"tfmetarec.{package}.{name}" for name in modules.get(package, ())} <= page.ids


def test_no_private_name_has_a_place(pages: dict[str, Reader]) -> None:
    ids = {found for name, page in pages.items() if name.startswith("api/") for found in page.ids}
    assert not [name for name in ids if name.startswith("tfmetarec.") and re.search(r"\._(?!_init__)", name)]


def test_every_key_of_a_configuration_is_listed(built: tuple[Path, str]) -> None:
    page = (built[0] / "api" / "config.html").read_text()
    for section, field in Config.model_fields.items():
        for key in getattr(field.annotation, "model_fields", [None]):
            assert f"<code>{section}.{key}</code>" in page or f"<code>{section}</code>" in page


def test_every_command_and_option_is_listed(built: tuple[Path, str], pages: dict[str, Reader]) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) <= pages["api/cli.html"].ids
    page = (built[0] / "api" / "cli.html").read_text()
    for command in commands.values():
        for parameter in command.params:
            assert f"<code>{parameter.opts[0]}</code>" in page


def test_examples_of_docstrings_are_code(built: tuple[Path, str]) -> None:
    for path in (built[0] / "api").glob("*.html"):
        assert "<blockquote>" not in path.read_text(), path  # What a `>` outside of code becomes.


def test_no_link_is_dead(built: tuple[Path, str], pages: dict[str, Reader]) -> None:
    site = built[0]
    dead = []
    for name, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            # Only the page for what is not found, which is shown anywhere, counts from the root.
            start = site if parts.path.startswith("/") else (site / name).parent
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                dead.append((name, link))
            elif parts.fragment and target.suffix == ".html":
                # `__` begins the ids that the theme's scripts make.
                ids = pages[target.relative_to(site).as_posix()].ids
                if unquote(parts.fragment) not in ids and not parts.fragment.startswith("__"):
                    dead.append((name, link))
    assert dead == []


def test_nothing_is_fetched_from_another_host(built: tuple[Path, str], pages: dict[str, Reader]) -> None:
    assert [(name, link) for name, page in pages.items() for link in page.fetched if urlsplit(link).netloc] == []
    for path in built[0].rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text()), path


def test_every_guide_is_in_the_navigation(pages: dict[str, Reader]) -> None:
    def below(nav: object) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in below(part)]

    listed = {Path(page).as_posix() for page in below(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])}
    guides = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert guides <= listed
    overview = [link for link in pages["algorithms/index.html"].links if not link.startswith("#")]
    for page in (ROOT / "docs" / "algorithms").glob("[!R]*.md"):
        assert overview.count(f"{page.stem}.html") >= 2, "in the text and in the navigation"


def test_links_out_of_the_documentation_lead_to_copies(built: tuple[Path, str]) -> None:
    assert (built[0] / "files/benchmarks/results/tuning.json").read_bytes() == (
        ROOT / "benchmarks/results/tuning.json"
    ).read_bytes()
    assert "completejourney.yaml" in (built[0] / "files/configs/index.html").read_text()
    assert "Recommenders that" in (built[0] / "index.html").read_text()
