"""What griffe is told of this code: how its docstrings, like Keras's, have examples, and which names are functions."""

import re
from textwrap import dedent, indent
from typing import Any

import griffe

# Lines of a doctest and what it prints, up to a blank line that no further `>>>` follows.
_EXAMPLE = re.compile(r"^(?:Example:\n)?((?: *>>> .*\n)(?:.+\n|\n(?= *>>> ))*)", flags=re.M)

_CALL = re.compile(r"^Call arguments:\n((?:    .*\n)+)", flags=re.M)


class HouseStyle(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = _EXAMPLE.sub(_section, obj.docstring.value + "\n")
            obj.docstring.value = _CALL.sub(_call_arguments, text).rstrip("\n")

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Leaves private fields of dataclasses out: nobody is meant to give them as arguments."""
        if any("dataclass" in decorator.callable_path for decorator in cls.decorators):
            for name in [name for name in cls.members if name.startswith("_") and cls.members[name].is_attribute]:
                cls.del_member(name)

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Shows `tmr.evaluation.cold_start` as what it is in Python: the function, not the file of the same name."""
        loader.resolve_aliases(implicit=True)  # While the files are still found by name.
        for package in pkg.modules.values():
            for name in package.exports or []:
                file = package.members.get(str(name))
                if isinstance(file, griffe.Module) and str(name) in file.members:
                    package.set_member(str(name), griffe.Alias(str(name), file.members[str(name)], parent=package))


def _section(match: re.Match) -> str:
    """A section that griffe knows."""
    return "Examples:\n" + indent(dedent(match[1]), "    ")


def _call_arguments(match: re.Match) -> str:
    """A list, since griffe would look for these among the arguments of the constructor."""
    return "**Call arguments:**\n\n" + re.sub(r"^(\w+): ", r"- `\1`: ", dedent(match[1]), flags=re.M)
