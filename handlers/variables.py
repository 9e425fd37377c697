"""What a program can be started with: the limits that the kernel has for arguments and variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

PARAMETER: Final = "WORKSPACED_PARAM_"
"""What the variable of a template's parameter begins with."""

_LONGEST: Final = 32 * 4096
"""Bytes that the kernel takes of one argument or variable, with its end (MAX_ARG_STRLEN)."""
_ROOM: Final = 192 * 1024
"""Bytes of what the kernel takes together that are left for the command itself."""
_MOST: Final = 6 * 1024 * 1024
_LEAST: Final = 64 * 1024
"""Bounds of what is left for variables, whatever the limit of the stack is, which decides that."""
_POINTER: Final = 8


def faults(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that no program can be started with, and why."""
    room = max(min(os.sysconf("SC_ARG_MAX"), _MOST) - _ROOM, _LEAST)
    together = 0
    for name, value in env.items():
        fault, size = _fault(name, value)
        if not fault and together + size > room:
            fault = f"all variables together have more than {room:,} bytes"
        if fault:
            yield name, f"{_origin(name)} can't be passed to a program: {fault}"
        else:
            together += size


def command_fault(command: str) -> str:
    """Say why a shell can't be given this command as one argument, if it can't."""
    if "\0" in command:
        return "the command holds a NUL"
    try:
        size = len(os.fsencode(command))
    except UnicodeEncodeError:
        return "the command holds half a character (a lone surrogate)"
    if size >= _LONGEST:
        return (
            f"the command has {size:,} bytes, and {_LONGEST - 1:,} is the most: put it into a file of "
            "the template, and run that"
        )
    return ""


def _fault(name: str, value: str) -> tuple[str, int]:
    """Say what is wrong with a variable, and how many bytes of the kernel's room it takes."""
    if not name or "=" in name or "\0" in name:
        return "its name is empty, or holds '=' or a NUL", 0
    if "\0" in value:
        return "its value holds a NUL", 0
    try:
        own, length = len(os.fsencode(name)) + len("=\0"), len(os.fsencode(value))
    except UnicodeEncodeError:
        return "it holds half a character (a lone surrogate)", 0
    if own + length > _LONGEST:
        return f"its value has {length:,} bytes, and {_LONGEST - own:,} is the most", 0
    return "", own + length + _POINTER


def _origin(name: str) -> str:
    if name.startswith(PARAMETER):
        return f"the value of parameter {name.removeprefix(PARAMETER).lower()!r}"
    return f"the variable {name!r}"
