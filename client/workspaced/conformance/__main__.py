"""Checks a provisioner, in any language, against the contract of workspaced.

The suite needs a running workspaced (for example `workspaced up`) and the key of its operator. It asks for
workspaces of one template of your pool, sends jobs of its own, watches the bus, and prints each check with
the contract's sentence, what it expected, and what it saw. Its chats and workspaces are new ones, and are
deleted at the end. Run it where nobody else works in this pool.

Push a template for your pool whose start build takes two to five seconds: a shorter one ends before it can
be canceled or killed. With --command the suite starts your provisioner, kills it in the middle of a build,
and starts it again; it sets WORKSPACED_NATS_URL and WORKSPACED_CREDENTIALS (the file of a provisioner's key)
for it. Without --command your provisioner has to run already, and these checks are skipped.

Exit status: 0 if no check failed, 1 if one did, 2 for wrong usage.

Example:
  workspaced template push my-template
  python -m workspaced.conformance --pool mine --template TEMPLATE_ID --command "python mine.py"

"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from workspaced.conformance.checks import CHECKS, Result, Suite, run
from workspaced.conformance.command import Command
from workspaced.conformance.observer import Observer
from workspaced.connection import open_connection
from workspaced.errors import Refused, WorkspacedError

_DEFAULT_ORGANIZATION: Final = str(uuid5(NAMESPACE_URL, "workspaced:organization:default"))
_DATA_DIR: Final = Path.home() / ".local/share/workspaced"
_MARKS: Final = {"passed": "PASS", "failed": "FAIL", "skipped": "SKIP"}


def main() -> None:
    """Run the suite as the command line says; exit with 1 if a check failed."""
    parser = _parser()
    given = parser.parse_args()
    if given.list:
        for check in CHECKS:
            print(f"{check.name:11} {check.sentence}")
        return
    if given.pool is None or given.template is None:
        parser.error("--pool and --template are needed")
    if given.nats_url is None:
        parser.error("no NATS is named: use --nats-url or WORKSPACED_NATS_URL")
    credentials = Path(given.credentials)
    given.credentials = credentials / "operator.nk" if credentials.is_dir() else credentials
    names = frozenset(given.only or (check.name for check in CHECKS)) - frozenset(given.skip or ())
    try:
        results = asyncio.run(_checked(given, names))
    except WorkspacedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if given.json:
        print(json.dumps({"checks": [_as_json(result) for result in results]}, indent=2))
    failed = [result.check.name for result in results if result.outcome == "failed"]
    if not given.json:
        _print_summary(results, failed)
    sys.exit(1 if failed else 0)


async def _checked(given: argparse.Namespace, names: frozenset[str]) -> list[Result]:
    operator: Path = given.credentials
    connection = await open_connection(
        given.nats_url, key=operator, name="workspaced conformance", tls=None
    )
    observer = Observer(connection, given.pool)
    try:
        async with observer.listening():
            return await _checked_by(observer, given, names)
    except Refused as error:
        raise Refused(
            f"the key {operator} is not the operator's, who sees the whole bus: use --credentials (the key for your "
            f"provisioner is --key); {error}"
        ) from None
    finally:
        await connection.close()


async def _checked_by(
    observer: Observer, given: argparse.Namespace, names: frozenset[str]
) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
        output = Path(directory) / "output"
        command = None
        if given.command:
            key = given.key or str(given.credentials.with_name("provisioner.nk"))
            env = {"WORKSPACED_NATS_URL": given.nats_url, "WORKSPACED_CREDENTIALS": key}
            command = Command(given.command, env, output)
            await command.start()
        suite = Suite(
            observer,
            given.patience,
            given.organization,
            given.template,
            dict(pair.split("=", 1) for pair in given.parameter or ()),
            command,
        )
        try:
            results = await run(suite, names)
        finally:
            if command is not None:
                await command.stop()
        failed = any(result.outcome == "failed" for result in results)
        if failed and command is not None:
            text = output.read_text(errors="replace")
            print(f"--- what the command printed ---\n{text[-8000:]}", file=sys.stderr)

    return results


def _print_summary(results: list[Result], failed: list[str]) -> None:
    for result in results:
        check = result.check
        print(f"{_MARKS[result.outcome]} {check.name}")
        print(f"     contract: {check.sentence}")
        print(f"     expected: {check.expected}")
        print(f"     seen:     {result.seen}")
    count = {outcome: sum(one.outcome == outcome for one in results) for outcome in _MARKS}
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    if failed:
        print(f"failed: {', '.join(failed)}")


def _as_json(result: Result) -> dict[str, str]:
    check = result.check
    return {
        "name": check.name,
        "outcome": result.outcome,
        "contract": check.sentence,
        "expected": check.expected,
        "seen": result.seen,
    }


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no UUID") from None


def _pair(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return text


def _parser() -> argparse.ArgumentParser:
    description, _, example = (__doc__ or "").partition("Example:")
    parser = argparse.ArgumentParser(
        prog="python -m workspaced.conformance",
        description=description,
        epilog=f"Example:{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [check.name for check in CHECKS]
    add = parser.add_argument
    add("--pool", help="the pool that the provisioner serves")
    add(
        "--template",
        type=_uuid,
        metavar="ID",
        help="the id that `workspaced template push` printed",
    )
    add("--command", help="the command line that starts the provisioner; a shell runs it")
    add(
        "--nats-url",
        default=os.environ.get("WORKSPACED_NATS_URL") or None,
        help="the `nats` of the ready line of `workspaced up` (default: WORKSPACED_NATS_URL)",
    )
    add(
        "--credentials",
        default=os.environ.get("WORKSPACED_CREDENTIALS") or _DATA_DIR / "credentials",
        help="the operator's key, or the directory `credentials` of the data directory that has it "
        "(default: WORKSPACED_CREDENTIALS, else that of `workspaced up`)",
    )
    add(
        "--key",
        metavar="FILE",
        help="the key for --command (default: provisioner.nk beside the operator's)",
    )
    add(
        "--organization",
        type=_uuid,
        default=os.environ.get("WORKSPACED_ORGANIZATION") or _DEFAULT_ORGANIZATION,
        help="the organization of the template (default: WORKSPACED_ORGANIZATION, else the default one)",
    )
    add(
        "--parameter",
        action="append",
        type=_pair,
        metavar="KEY=VALUE",
        help="a parameter of the template; may be repeated",
    )
    add(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for what the contract promises (default: 60; a killed provisioner's job "
        "may take 30 to come again)",
    )
    add("--only", action="append", choices=names, help="make this check only; may be repeated")
    add("--skip", action="append", choices=names, help="leave this check out; may be repeated")
    add(
        "--list", action="store_true", help="print the checks and the contract's sentences, and end"
    )
    add("--json", action="store_true", help="print the results as JSON")
    return parser


if __name__ == "__main__":
    main()
