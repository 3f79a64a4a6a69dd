"""Makes the pages of the API reference from the source, which is read and not run.

Each public package has one page with every name of its `__all__`, so a name that is exported is documented. The page
of the configuration lists every key with its type, default and meaning.
"""

import ast
import re
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PACKAGE = Path(__file__).parents[2] / "tfmetarec"
TOPICS = {
    "data": [
        "data.sources.completejourney",
        "data.sources.movielens",
        "data.sources.douban_cdr",
        "data.sources.synthetic",
        "data.sources.files",
        "data.files",
    ],
    "tasks": [],
    "models": [],
    "models.baselines": [],
    "optimizers": [],
    "meta": [],
    "transfer": [],
    "evaluation": ["evaluation.metrics", "evaluation.lists", "evaluation.calibration"],
    "tuning": [],
    "export": [],
    "server": [],
    "client": ["client.support_file"],
    "experiment": [],
    "crossing": [],
    "config": ["config.load", "config.with_values", "config.value_of", "config.ConfigError"],
}
"""Each page of the reference, and what it shows besides the names of its package."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages of algorithms and of packages to the navigation, so that a new one is there by existing."""
    algorithms = sorted((PACKAGE.parent / "docs" / "algorithms").glob("[!R]*.md"))
    more = {
        "Algorithms": [f"algorithms/{page.name}" for page in algorithms],
        "API reference": [{_shown(topic): f"api/{topic}.md"} for topic in TOPICS],
    }
    for section in config.nav or []:
        for title, pages in section.items():
            if title in more:
                pages += more[title]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    rows = [f"| [`{_shown(topic)}`]({topic}.md) | {_first_line(topic)} |" for topic in TOPICS]
    pages = {"index": "\n".join([INTRODUCTION, "| | |", "| --- | --- |", *rows, ""])}
    pages |= {topic: _page(topic, modules) for topic, modules in TOPICS.items()}
    for name, content in pages.items():
        files.append(File.generated(config, f"api/{name}.md", content=content))
    return files


INTRODUCTION = """# API reference

`import tfmetarec as tmr`; each package is imported when it is first used. Every public name is on these pages.
Letters for shapes: `T` tasks, `S` support rows, `Q` query rows, `N` candidates, `P` negatives, `D` dimensions.
"""


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links of full names such as `tmr.meta.MAML`, and of the names of classes that only one package has."""
    known = [(name, f"tfmetarec.{topic}.{name}") for topic in TOPICS for name in exported(topic)]
    names = [name for name, _ in known]
    places = {name: full for name, full in known if names.count(name) == 1 and name[0].isupper()}
    places |= {"tmr": "tfmetarec", "tfmetarec": "tfmetarec"}

    def linked(match: re.Match) -> str:
        owner, dot, member = match[1].partition(".")
        if owner not in places:
            return match[0]
        return f'<autoref identifier="{places[owner]}{dot}{member}" optional><code>{match[1]}</code></autoref>'

    # What is a link or a heading already, or a block of code, stays as it is.
    parts = re.split(r"(<(a|autoref|pre|h[1-6])\b.*?</\2>)", html, flags=re.S)
    parts[::3] = [re.sub(r"<code>([A-Za-z_][\w.]*)(?:\(\))?</code>", linked, part) for part in parts[::3]]
    del parts[2::3]
    return "".join(parts)


def exported(topic: str) -> list[str]:
    """The names in `__all__` of a package or module, in its order; none without `__all__`."""
    for node in _tree(topic).body if _path(topic).exists() else []:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return []


def _page(topic: str, modules: list[str]) -> str:
    head = f"# {_shown(topic)} {{#tfmetarec.{topic}}}\n"
    if topic == "config":
        head, own = f"{head}\n{_first_line(topic)}\n\n{_keys()}", []
    else:
        own = [_block(topic, root=False)]
    return "\n".join([head, *own, *[_block(module, root=True) for module in modules]])


def _block(topic: str, *, root: bool) -> str:
    """What mkdocstrings is to show of a package or module."""
    options: dict = {"show_root_heading": root, "show_root_toc_entry": root, "heading_level": 2}
    if names := [name for name in exported(topic) if f"{topic}.{name}" not in TOPICS.get(topic, [])]:
        options["members"] = names
    return f"::: tfmetarec.{topic}\n" + _indented(yaml.safe_dump({"options": options}, sort_keys=False))


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def _keys() -> str:
    """Tables of all keys that a configuration may have."""
    from tfmetarec.config import Config  # Loads pydantic, and nothing of TensorFlow.

    lines = []
    for section, field in Config.model_fields.items():
        fields = getattr(field.annotation, "model_fields", None)
        if section == "name":
            lines += ["## Keys", "", *_HEAD]
        elif section == "data":
            lines += [""]
        if fields is None:
            lines.append(_row(section, field))
        else:
            lines += [f"### {section}", "", *_HEAD, *[_row(f"{section}.{key}", fields[key]) for key in fields], ""]
    return "\n".join([*lines, "## Python", ""])


_HEAD = ["| key | default | meaning |", "| --- | --- | --- |"]


def _row(key: str, field: object) -> str:
    default = yaml.safe_dump(_plain(field.default), default_flow_style=True).removesuffix("...\n").strip()
    return f"| `{key}` | `{'unset' if default == 'null' else default}` | {field.description} |"


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _shown(topic: str) -> str:
    return f"tfmetarec.{topic}" if topic == "config" else f"tmr.{topic}"


def _first_line(topic: str) -> str:
    return (ast.get_docstring(_tree(topic)) or "").split("\n")[0]


def _tree(topic: str) -> ast.Module:
    return ast.parse(_path(topic).read_text(encoding="utf-8"))


def _path(topic: str) -> Path:
    folder = PACKAGE.joinpath(*topic.split("."))
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
