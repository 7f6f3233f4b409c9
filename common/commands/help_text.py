"""Help texts that are whole and wrapped once, by the terminal."""

import inspect
from typing import Any, get_args

import typer
from typer.core import TyperArgument, TyperCommand
from typer.models import ArgumentInfo


def unwrap_help(app: typer.Typer) -> None:
    """Join the lines of each paragraph in the help of all commands.

    The terminal wraps a paragraph at its own width. Lines that were wrapped before would be cut a second time.
    """
    for command in app.registered_commands:
        text = command.help or inspect.getdoc(command.callback) if command.callback else command.help
        command.help = unwrapped(text or "")
        command.cls = _Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            unwrap_help(group.typer_instance)


class _Command(TyperCommand):
    """Command that shows what its arguments mean.

    Typer 0.20, which Flower asks for, loses their help under click 8.5.
    """

    def __init__(self, name: str | None, **more: Any) -> None:
        super().__init__(name, **more)
        signature = inspect.signature(inspect.unwrap(more["callback"]))
        for argument in self.params:
            if isinstance(argument, TyperArgument) and not argument.help:
                given = get_args(signature.parameters[str(argument.name)].annotation)[1:]
                argument.help = next((info.help for info in given if isinstance(info, ArgumentInfo)), None)


def unwrapped(text: str) -> str:
    r"""Join the lines of each paragraph that is not a list or a table.

    >>> unwrapped("One\ntwo.\n\nT1  a test\nT2  another")
    'One two.\n\nT1  a test\nT2  another'
    """
    return "\n\n".join(map(_joined, text.strip().split("\n\n")))


def _joined(paragraph: str) -> str:
    # An indented line, or one with columns, stands for itself.
    apart = any("  " in line for line in paragraph.splitlines())
    return paragraph if apart else " ".join(paragraph.split("\n"))
