"""Makes the page of the command line from the commands themselves."""

from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from tfmetarec.cli import app  # Loads typer, and nothing of TensorFlow.

    commands: dict[str, Any] = typer.main.get_command(app).commands
    page = "\n\n".join(["# Command line", *[_section(name, command) for name, command in commands.items()], ""])
    files.append(File.generated(config, "api/cli.md", content=page))
    return files


def _section(name: str, command: Any) -> str:
    usage = command.get_usage(typer.Context(command, info_name=f"tfmetarec {name}")).removeprefix("Usage: ")
    table = "\n".join(["| | |", "| --- | --- |", *map(_row, command.params)]) if command.params else ""
    return "\n\n".join([f"## {name}", command.help, f"```text\n{' '.join(usage.split())}\n```", table])


def _row(parameter: Any) -> str:
    """What an argument or an option means, with its default where it has one."""
    names = parameter.opts if parameter.param_type_name == "option" else [parameter.name]
    default = f" Defaults to `{parameter.default}`." if parameter.default not in (None, False) else ""
    return f"| {', '.join(f'`{name}`' for name in names)} | {parameter.help}{default} |"
