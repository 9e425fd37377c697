"""Issued and revoked keys: open connections are closed, new ones refused, and the log names the key."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats.errors
import nkeys
import pytest

from tests.rigs.client import (
    Participant,
    Provisioner,
    ServiceError,
    connect,
    connected,
    credential_options,
)
from tests.rigs.messages import Event, agent_entry, build_fact, new_id, subject_of
from tests.rigs.processes import Up
from tests.rigs.world import POOL, World

ONE = ("--chat", new_id())
"""The arguments that name a chat on the command line."""


def public_key(credential: Event) -> str:
    """Return the public key of a credential."""
    return str(nkeys.from_seed(bytearray(credential["seed"].encode())).public_key.decode())


class Guest(Participant):
    """A participant that notices when the server closes its connection for good."""

    def __init__(self) -> None:
        super().__init__()
        self._gone = asyncio.Event()

    async def left(self) -> None:
        self._gone.set()

    async def is_cut_off(self) -> None:
        await asyncio.wait_for(self._gone.wait(), 10)


@asynccontextmanager
async def connected_guest(world: World, credential: Event) -> AsyncIterator[Guest]:
    party = Guest()
    options = {**credential_options(credential), "closed_cb": party.left}
    async with connected(party, world.deployment.nats, **options):
        yield party


async def assert_connection_refused(world: World, why: str, **options: Any) -> dict[str, Any]:
    """Check that a connection is refused; return the line that the gateway logs about it."""
    stranger = Participant()
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await connect(stranger, world.deployment.nats, **options)
    await stranger.client.close()
    seed = bytearray(options["nkeys_seed_str"].encode())
    return await log_line(world, f'"why": "{why}"', nkeys.from_seed(seed).public_key.decode())


async def log_line(world: World, *words: str) -> dict[str, Any]:
    """Wait for a line of the log that contains all of these words; return it."""
    process = running_up(world).process

    def line() -> dict[str, Any]:
        process.wait_for_output(words[-1])
        found = [one for one in process.output().splitlines() if all(w in one for w in words)]
        return json.loads(found[-1])  # type: ignore[no-any-return]

    return await asyncio.to_thread(line)


def running_up(world: World) -> Up:
    assert world.deployment.up is not None
    return world.deployment.up


async def request_agent_credential(
    world: World, build: Event, by: Participant | None = None
) -> Event:
    keys = ("chat_id", "workspace_id", "build_id")
    asked = {key: build[key] for key in keys} | {"agent_id": new_id()}
    return dict(await (by or world.provisioner).rpc("agent_credential", **asked))


async def test_an_agent_whose_build_is_superseded_is_disconnected_and_refused(
    world: World,
) -> None:
    chat = await world.chat()
    job, _ = await world.ready(chat)
    credential = await request_agent_credential(world, job.data)
    other = await world.chat()
    _, other_job = await world.building(other)
    async with (
        connected_guest(world, credential) as old,
        connected_guest(world, await request_agent_credential(world, other_job.data)) as untouched,
    ):
        call = await chat.ask("stop_workspace")
        await old.is_cut_off()
        line = await assert_connection_refused(
            world, "superseded", name="the old one", **credential_options(credential)
        )
        assert untouched.client.is_connected
        await untouched.flush()
    await world.provisioner.succeed(await world.provisioner.job(chat, "stop"))
    await chat.answer(call)

    assert line["level"] == "warning"
    assert line["address"] == "127.0.0.1"
    assert "'the old one'" in line["message"]


async def test_an_agents_key_is_listed_until_its_build_is_superseded(world: World) -> None:
    chat = await world.chat()
    job, _ = await world.ready(chat)
    key = public_key(await request_agent_credential(world, job.data))

    def listed(*flags: str) -> dict[str, Any]:
        lines = running_up(world).run("credentials", "list", *flags).stdout.splitlines()
        return {entry["public_key"]: entry for entry in map(json.loads, lines)}

    assert "superseded" not in (await asyncio.to_thread(listed))[key]
    call = await chat.ask("stop_workspace")
    await chat.state("stopping")

    assert key not in await asyncio.to_thread(listed)
    assert (await asyncio.to_thread(listed, "--all"))[key]["superseded"] is True
    await world.provisioner.succeed(await world.provisioner.job(chat, "stop"))
    await chat.answer(call)


async def test_an_agent_of_a_deleted_workspace_is_disconnected(world: World) -> None:
    chat = await world.chat()
    job, _ = await world.ready(chat)
    async with connected_guest(world, await request_agent_credential(world, job.data)) as old:
        await world.provisioner.publish_event(
            "workspace_deleted", {**job.data, "build_id": None, "build_number": None}
        )
        await old.is_cut_off()


async def test_revoking_a_frontends_key_takes_effect_at_once_and_for_ever(world: World) -> None:
    chat = await world.chat()
    give = {"chat_ids": [chat.id], "ttl_seconds": 60}
    stolen = await world.service.rpc("frontend_credential", **give)
    async with (
        connected_guest(world, stolen) as thief,
        connected_guest(world, stolen) as owner,
        connected_guest(world, await world.service.rpc("frontend_credential", **give)) as other,
    ):
        assert running_up(world).data("credentials", "revoke", public_key(stolen))["revoked"]
        await asyncio.gather(thief.is_cut_off(), owner.is_cut_off())
        await assert_connection_refused(world, "revoked", **credential_options(stolen))
        assert other.client.is_connected
        await other.flush()


async def test_an_expired_key_is_refused(world: World) -> None:
    chat = await world.chat()
    short = await world.service.rpc("frontend_credential", chat_ids=[chat.id], ttl_seconds=3)
    async with connected_guest(world, short) as frontend:
        await frontend.is_cut_off()

    await assert_connection_refused(world, "expired", **credential_options(short))


async def test_an_unknown_key_is_refused(world: World) -> None:
    seed = nkeys.encode_seed(new_id().replace("-", "").encode(), nkeys.PREFIX_BYTE_USER).decode()

    line = await assert_connection_refused(
        world, "unknown", nkeys_seed_str=seed, name="\x1b[31mred"
    )

    assert "\x1b" not in line["message"]


async def test_only_operators_issue_keys(world: World) -> None:
    for party in (world.service, world.provisioner):
        for name in ("issue_credential", "list_credentials", "revoke_credential"):
            await party.client.publish(f"workspaced.rpc.{name}", b"{}")
            await party.errors.first(lambda error, name=name: name in str(error))  # type: ignore[misc]


async def test_an_issued_operator_key_works_until_it_is_revoked(
    world: World, tmp_path: Path
) -> None:
    up, file = running_up(world), tmp_path / "me.nk"
    issued = up.data(
        *("credentials", "issue", "--role", "operator", "--name", "me", "--for", "10m"),
        *("--out", file),
    )
    assert "seed" not in issued
    assert file.stat().st_mode & 0o777 == 0o600

    worked = up.run("chat", "list", "--credentials", file)
    (listed,) = [
        entry
        for line in up.run("credentials", "list").stdout.splitlines()
        if (entry := json.loads(line))["public_key"] == issued["public_key"]
    ]
    assert up.data("credentials", "revoke", issued["public_key"])["revoked"]
    after = up.run("chat", "list", "--credentials", file)
    left = up.run("credentials", "list").stdout
    everything = up.run("credentials", "list", "--all").stdout

    assert worked.returncode == 0, worked.stderr
    assert (listed["role"], listed["name"]) == ("operator", "me")
    assert after.returncode == 1
    assert "does not accept the key" in after.stderr
    assert issued["public_key"] not in left
    assert issued["public_key"] in everything
    assert file.read_text() not in up.process.output()


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (("issue", "--role", "king"), 2, "invalid choice: 'king'"),
        (("issue", "--role", "operator", "--for", "soon"), 2, "'soon' is not a duration"),
        (("issue", "--role", "frontend"), 2, "name each with --chat UUID"),
        (("issue", "--role", "operator", "--chat", new_id()), 2, "--chat: a key for operator is"),
        (
            ("issue", "--role", "frontend", *100 * ONE, *ONE),
            2,
            "--chat: a key is limited to 100 chats",
        ),
        (("issue", "--role", "provisioner", "--pool", "p"), 2, "--pool, --name: a provisioner's"),
        (("issue", "--role", "chat-service", "--pool", "p"), 2, "--pool: only a provisioner's"),
        (
            ("issue", "--role", "operator", "--name", "a b"),
            2,
            "--name: use letters, digits, - and _",
        ),
        (("issue", "--role", "operator", "--for", "169h"), 2, "--for: a key for operator is valid"),
        (("issue", "--role", "operator", "--for", "800h"), 2, "is valid for 7 days (168h) at most"),
        (("issue", "--role", "worker", "--for", "800h"), 2, "is valid for 30 days (720h) at most"),
        (("issue", "--role", "operator", "--out", "README.md"), 1, "README.md: the file exists"),
        (("issue", "--role", "operator", "--out", "/no/x.nk"), 1, "x.nk: No such file"),
        (("revoke", "UNOBODY"), 1, "no key UNOBODY was issued: `workspaced credentials list`"),
        (("revoke", "no key"), 1, "no key no key was issued: `workspaced credentials list`"),
    ],
)
async def test_unsuitable_arguments_of_issue_are_named(
    world: World, words: tuple[str, ...], status: int, complaint: str
) -> None:
    done = await asyncio.to_thread(running_up(world).run, "credentials", *words)

    assert done.returncode == status
    assert complaint in done.stderr
    assert not re.search(r"\bbody|\b40[04]\b|errno|seconds", done.stderr, re.IGNORECASE)
    assert done.stdout == ""


async def issue_provisioner_key(world: World, pool: str, name: str) -> Event:
    issued = await world.operator.rpc("issue_credential", role="provisioner", pool=pool, name=name)
    return {key: issued[key] for key in ("seed", "inbox_prefix", "expires_at")}


async def test_a_provisioner_of_another_pool_has_no_effect_and_gets_no_credential(
    world: World,
) -> None:
    chat = await world.chat()
    job, _ = await world.ready(chat)
    before = chat.now
    options = credential_options(await issue_provisioner_key(world, "elsewhere", "far"))
    async with connected(Provisioner("elsewhere", "far"), world.deployment.nats, **options) as far:
        newer = {**job.data, "build_id": new_id(), "build_number": job.build_number + 1}
        for told, about in (
            ("build_started", newer),
            ("build_failed", newer),
            ("build_failed", job.data),
            ("workspace_deleted", {**job.data, "build_id": None, "build_number": None}),
        ):
            last = await far.publish_event(
                told, about, **({"error": "x"} if "failed" in told else {})
            )
        line = await log_line(world, "of pool elsewhere", last["id"])
        with pytest.raises(ServiceError) as fault:
            await request_agent_credential(world, job.data, by=far)
    shown = await world.service.rpc("get_chat", chat_id=chat.id)
    log = await world.service.rpc("read_events", chat_id=chat.id, after=0)

    assert fault.value.code == 403
    assert shown["version"] == before["version"]
    outcomes = [(e["outcome"], e["version"]) for e in log["events"][-4:]]
    assert outcomes == [("foreign", None)] * 4
    assert line["chat_id"] == chat.id
    assert f"a workspace of pool {POOL}" in line["message"]
    replayed = await asyncio.to_thread(running_up(world).run, "replay", "--chat", chat.id)
    assert replayed.returncode == 0, replayed.stderr


async def test_a_named_provisioner_builds_for_its_own_pool(world: World) -> None:
    chat = await world.chat()
    options = credential_options(await issue_provisioner_key(world, POOL, "near"))
    call, job = await world.building(chat)
    async with connected(Provisioner(POOL, "near"), world.deployment.nats, **options) as near:
        credential = await request_agent_credential(world, job.data, by=near)
        await near.publish_event("build_started", job)
        await near.succeed(job, agent_entry())
        await chat.state("agent_connecting")
        fact = build_fact("build_started", "other", job.data, {})
        with pytest.raises(nats.errors.Error):
            await near.js.publish(subject_of(fact), json.dumps(fact).encode(), timeout=1)
    await chat.cancel(call)

    assert credential["seed"]


async def test_an_agent_of_a_stopped_workspace_is_disconnected_after_two_seconds(
    world: World,
) -> None:
    chat = await world.chat()
    _, its_agent = await world.ready(chat)

    call = await chat.ask("stop_workspace")
    await chat.state("stopping")
    await its_agent.log(1, "good bye\n")
    line = await chat.logs.first(lambda e: e["data"]["origin"] == "agent")

    assert line["data"]["output"] == "good bye\n"
    await world.provisioner.succeed(await world.provisioner.job(chat, "stop"))
    await chat.answer(call)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("operator", "--for", "8d"), "--for: a token is valid for 1 second to 30 days"),
        (("chat-service", "--for", "31d"), "--for: a token is valid for 1 second to 30 days"),
        (("operator", "--for", "5ms"), "--for: a token is valid for 1 second to 30 days"),
        (("frontend",), "--chat: required for role frontend"),
        (("chat", *ONE), "--organization: required for role chat"),
        (("chat-service", *ONE), "--chat: only for roles chat and frontend"),
        (("operator", "--owner-name", "ann"), "--owner-name: only for role chat"),
    ],
)
async def test_unsuitable_arguments_of_token_issue_are_named(
    world: World, words: tuple[str, ...], complaint: str
) -> None:
    up = running_up(world)
    done = await asyncio.to_thread(up.run, "token", "issue", "--role", *words)

    assert done.returncode == 2
    assert complaint in done.stderr
    assert not re.search(r"\bbody|_seconds", done.stderr)
    assert done.stdout == ""
