"""What a program can be started with: the limits that the kernel has for arguments and variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

from statemachine.local_template import LONGEST_VARIABLE, PARAMETER, variable_fault, variable_size

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
        fault = variable_fault(name, value)
        size = 0 if fault else variable_size(name, value) + _POINTER
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
    if size >= LONGEST_VARIABLE:
        return (
            f"the command has {size:,} bytes, and {LONGEST_VARIABLE - 1:,} is the most: put it into a file of "
            "the template, and run that"
        )
    return ""


def _origin(name: str) -> str:
    if name.startswith(PARAMETER):
        return f"the value of parameter {name.removeprefix(PARAMETER).lower()!r}"
    return f"the variable {name!r}"
