"""Help texts that are wrapped once, by the terminal."""

import inspect

import typer


def unwrap_help(app: typer.Typer) -> None:
    """Join the lines of each paragraph in the help of all commands.

    The terminal wraps a paragraph at its own width. Lines that were wrapped before would be cut a second time.
    """
    for command in app.registered_commands:
        text = command.help or inspect.getdoc(command.callback) if command.callback else command.help
        command.help = unwrapped(text or "")
    for group in app.registered_groups:
        if group.typer_instance is not None:
            unwrap_help(group.typer_instance)


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
