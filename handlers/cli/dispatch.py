"""From words to work: starts the command, and turns failures into words and an exit status.

Exit status: 0 well, 1 failed, 2 wrong usage. Data goes to stdout, everything else to stderr. What a
command needs is imported when it is called.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from handlers.cli.flags import parser

if TYPE_CHECKING:
    from handlers.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    words = parser()
    flags = words.parse_args(argv)
    if flags.command is None:
        words.print_help(sys.stderr)
        return 2
    try:
        status = _run(flags)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output had enough; Python would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _run(flags: argparse.Namespace) -> int:
    from bus import BusError, NoResponder  # noqa: PLC0415 — quick --help
    from handlers import logs  # noqa: PLC0415
    from handlers.app import NotFoundError  # noqa: PLC0415
    from handlers.embedded import EmbeddedError  # noqa: PLC0415
    from handlers.settings import InvalidSettings, read_settings  # noqa: PLC0415
    from statemachine.store import StoreUnavailableError  # noqa: PLC0415
    from statemachine.templates import TemplateError  # noqa: PLC0415

    logs.configure(quiet=not flags.serves)
    if flags.command == "agent":
        from handlers.agent.__main__ import run_agent  # noqa: PLC0415 — each its own imports only

        return run_agent(flags.config)
    try:
        settings = read_settings(vars(flags))
        return asyncio.run(_started(flags, settings))
    except InvalidSettings as bad:
        return _fail(str(bad), 2)
    except NoResponder as bad:
        return _fail(f"{bad}: start `workspaced gateway` on this NATS, or `workspaced up`", 1)
    except (
        BusError,
        EmbeddedError,
        NotFoundError,
        StoreUnavailableError,
        TemplateError,
        TimeoutError,
    ) as bad:
        return _fail(str(bad) or type(bad).__name__, 1)


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"workspaced: {message}\n")
    return status


async def _started(flags: argparse.Namespace, settings: Settings) -> int:
    """Run a command that serves, or go on to those that do one thing and end."""
    match flags.command:
        case "up":
            from handlers.up import up  # noqa: PLC0415 — each its own imports only

            await up(settings, nats_port=flags.nats_port, http_port=flags.http_port)
        case "worker":
            from handlers import roles  # noqa: PLC0415

            await roles.worker(settings)
        case "gateway":
            from handlers import roles  # noqa: PLC0415

            await roles.gateway(settings)
        case "provisioner":
            from handlers import roles  # noqa: PLC0415

            await roles.provisioner(settings, name=flags.name, pool=flags.pool)
        case _:
            return await _called(flags, settings)
    return 0


async def _called(flags: argparse.Namespace, settings: Settings) -> int:
    """Run a command of who uses it."""
    match flags.command:
        case "tool":
            from handlers.commands.tool import call_tool  # noqa: PLC0415

            return await call_tool(flags, settings)
        case "template push":
            from handlers.commands import template  # noqa: PLC0415

            await template.push(flags.folder, flags.organization, settings)
        case "template list":
            from handlers.commands import template  # noqa: PLC0415

            await template.show(flags.organization, settings, as_json=flags.json)
        case "template versions":
            from handlers.commands import template  # noqa: PLC0415

            await template.versions(
                flags.template, flags.organization, settings, as_json=flags.json
            )
        case "template activate":
            from handlers.commands import template  # noqa: PLC0415

            await template.activate(flags.version, settings)
        case "demo":
            from handlers.demo.demo import demo  # noqa: PLC0415

            return await demo(settings, keep=flags.keep)
        case _:
            return await _operated(flags, settings)
    return 0


async def _operated(flags: argparse.Namespace, settings: Settings) -> int:
    """Run a command of who looks after it."""
    match flags.command:
        case "chat list":
            from handlers.commands import chat  # noqa: PLC0415

            await chat.show_all(flags, settings)
        case "chat show":
            from handlers.commands import chat  # noqa: PLC0415

            await chat.show(flags.chat, settings, as_json=flags.json)
        case "workspace delete":
            from handlers.commands import deleting  # noqa: PLC0415

            return await deleting.delete(flags, settings)
        case "workspace orphans":
            from handlers.commands import orphans  # noqa: PLC0415

            await orphans.show(settings, as_json=flags.json)
        case "log":
            from handlers.commands import build_log  # noqa: PLC0415

            return await build_log.show(flags, settings)
        case _:
            return await _kept(flags, settings)
    return 0


async def _kept(flags: argparse.Namespace, settings: Settings) -> int:
    """Run a command about event logs and settings."""
    match flags.command:
        case "events":
            from handlers.commands import log  # noqa: PLC0415

            await log.events(flags.chat, settings)
        case "replay":
            from handlers.commands import log  # noqa: PLC0415

            return log.replay_file(flags.file)
        case "settings set":
            from handlers.commands import setting  # noqa: PLC0415

            return await setting.change(flags.key, flags.value, settings)
        case "settings list":
            from handlers.commands import setting  # noqa: PLC0415

            await setting.show(settings)
        case unknown:
            raise NotImplementedError(unknown)
    return 0
