"""TLS on every listener, with certificates from a CA that the test creates."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nats.errors
import pytest
import trustme

from bus import Untrusted
from bus.jetstream import connect
from handlers.access.identities import seed_file
from handlers.cli import main
from handlers.embedded import Servers
from handlers.errors import InvalidSettings
from handlers.runtime.listeners import (
    Certificate,
    Listeners,
    client_context,
    is_host_name,
    listen_address,
    server_certificate,
)
from handlers.settings import Settings
from tests.cli.template_folders import folder
from tests.rigs.client import Participant, connected, role_options
from tests.rigs.messages import new_id
from tests.rigs.processes import Up, run, up

# nats-py passes its timeout to aiohttp in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:parameter 'timeout' of type:DeprecationWarning")


@dataclass
class Papers:
    """A certificate for this machine, its CA, and another CA."""

    certificate: Path
    key: Path
    authority: Path
    stranger: Path


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    home = tmp_path_factory.mktemp("papers")
    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    made = Papers(*(home / f"{name}.pem" for name in ("own", "key", "authority", "stranger")))
    issued.cert_chain_pems[0].write_to_path(made.certificate)
    issued.private_key_pem.write_to_path(made.key)
    authority.cert_pem.write_to_path(made.authority)
    stranger.cert_pem.write_to_path(made.stranger)
    return made


@pytest.fixture(scope="module")
def secured(papers: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """An `up` whose listeners also accept other machines, only over TLS."""
    anywhere = ("--nats-host", "0.0.0.0", "--websocket-host", "0.0.0.0", "--http-host", "0.0.0.0")
    environment = {
        "WORKSPACED_TLS_CERTIFICATE": str(papers.certificate),
        "WORKSPACED_TLS_KEY": str(papers.key),
        "WORKSPACED_NATS_CA": str(papers.authority),
        "WORKSPACED_WEBSOCKET_ORIGINS": "https://pages.example",
    }
    directory = tmp_path_factory.mktemp("secured") / "data"
    with up(directory, *anywhere, env=environment) as running:
        yield running


@pytest.mark.parametrize("listener", ["nats", "websocket"])
async def test_clients_that_trust_the_ca_connect_over_tls(
    listener: str, secured: Up, papers: Papers
) -> None:
    options = role_options(secured.directory / "credentials", "chat-service")
    tls = ssl.create_default_context(cafile=str(papers.authority))

    async with connected(Participant(), secured.ready[listener], tls=tls, **options) as party:
        chats = await party.rpc("list_chats")

    assert secured.ready[listener].startswith(("tls://127.0.0.1:", "wss://127.0.0.1:"))
    assert chats == {"chats": []}


@pytest.mark.parametrize("listener", ["nats", "websocket"])
async def test_a_client_that_trusts_another_ca_does_not_connect(
    listener: str, secured: Up, papers: Papers
) -> None:
    seed = secured.seed_file("operator")

    for tls in (client_context(papers.stranger), None):
        with pytest.raises(Untrusted, match="can't be verified"):
            await connect(secured.ready[listener], seed_file=seed, tls=tls, wait=True)


async def test_only_the_named_web_pages_may_use_the_websocket(secured: Up, papers: Papers) -> None:
    options = role_options(secured.directory / "credentials", "chat-service")
    options["tls"] = ssl.create_default_context(cafile=str(papers.authority))
    url = secured.ready["websocket"]

    page = {"Origin": ["https://pages.example"]}
    async with connected(Participant(), url, ws_connection_headers=page, **options) as party:
        assert party.client.is_connected
    other = {"Origin": ["https://elsewhere.example"]}
    stranger = Participant()
    with pytest.raises(nats.errors.NoServersError):
        async with connected(stranger, url, ws_connection_headers=other, **options):
            pytest.fail("came in")
    assert any("403" in str(error) for error in stranger.errors.all)


def test_health_is_served_over_tls(secured: Up, papers: Papers) -> None:
    context = ssl.create_default_context(cafile=str(papers.authority))

    with urllib.request.urlopen(f"{secured.http}/readyz", context=context, timeout=5) as answer:
        assert json.load(answer) == {"status": "ready"}

    assert secured.http.startswith("https://127.0.0.1:")


def test_commands_and_agents_connect_over_tls(secured: Up, tmp_path: Path) -> None:
    template = secured.data("template", "push", folder(tmp_path))
    argument = f"template_id={template['template_id']}"
    chat = new_id()

    created = secured.data("tool", "create_workspace", "--chat", chat, "--arg", argument)
    deleted = secured.run("workspace", "delete", chat)

    assert created.keys() == {
        "created",
        "workspace_id",
        "workspace_name",
        "build_id",
    }  # so the agent is ready
    assert deleted.returncode == 0, deleted.stderr
    assert "eof_received" not in deleted.stderr  # asyncio's warning at the end of each connection


def test_a_wrong_ca_is_reported_with_a_remedy(secured: Up, papers: Papers) -> None:
    seed = ("--credentials", secured.seed_file("chat-service"))
    where = ("--nats-url", secured.nats, *seed)

    refused = run("chat", "list", *where, "--nats-ca", papers.stranger)

    assert refused.returncode == 1
    assert "can't be verified" in refused.stderr
    assert "--nats-ca" in refused.stderr


async def test_a_client_that_requires_tls_does_not_connect_without(servers: Servers) -> None:
    url = servers.nats_url.replace("nats://", "tls://")
    seed = seed_file(servers.credentials, "operator")

    for wait in (False, True):
        async with asyncio.timeout(10):
            with pytest.raises(Untrusted, match=f"{url} over TLS: the server offers no TLS"):
                await connect(url, seed_file=seed, wait=wait)


@pytest.mark.parametrize("role", ["worker", "gateway", "provisioner"])
async def test_a_role_ends_if_retrying_tls_cannot_succeed(
    role: str, servers: Servers, database_url: str, tmp_path: Path
) -> None:
    url = servers.nats_url.replace("nats://", "tls://")
    place = ("--data-dir", tmp_path, "--nats-url", url)
    seed = ("--credentials", seed_file(servers.credentials, role))
    # Through the environment, because a provisioner has no flag for it.
    env = {"WORKSPACED_DATABASE_URL": database_url}

    done = await asyncio.to_thread(run, role, *place, *seed, env=env)

    assert done.returncode == 1
    assert "offers no TLS" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", ""])
def test_a_public_address_requires_tls_or_an_explicit_setting(host: str, papers: Papers) -> None:
    with pytest.raises(InvalidSettings, match=r"--tls-certificate .* --insecure-no-tls"):
        listen_address("--http-host", host, None, insecure=False)

    certificate = Certificate(papers.certificate, papers.key)
    for listened in (
        listen_address("--http-host", host, None, insecure=True),
        listen_address("--http-host", host, certificate, insecure=False),
    ):
        assert host in (listened, "") or is_host_name(host)


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        (None, {"127.0.0.1"}),
        ("127.0.0.1", {"127.0.0.1"}),
        ("127.1.2.3", {"127.1.2.3"}),
        ("127.1", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("[::1]", {"::1"}),
        ("::ffff:127.0.0.1", {"::ffff:127.0.0.1"}),
        ("localhost", {"127.0.0.1", "::1"}),
        ("LOCALHOST.", {"127.0.0.1", "::1"}),
        ("own.localhost", {"127.0.0.1", "::1"}),
        ("ip6-localhost", {"::1"}),
        ("ip6-loopback", {"::1"}),
    ],
)
def test_loopback_addresses_need_no_tls(host: str | None, addresses: set[str]) -> None:
    assert listen_address("--http-host", host, None, insecure=False) in addresses


def test_a_name_that_also_resolves_to_public_addresses_requires_tls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [(socket.AF_INET, 1, 6, "", (address, 0)) for address in ("127.0.0.1", "10.1.2.3")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)

    with pytest.raises(InvalidSettings, match="can be reached from other machines"):
        listen_address("--http-host", "mixed", None, insecure=False)


@pytest.mark.parametrize(
    ("command", "flag"),
    [("up", "--nats-host"), ("up", "--websocket-host"), ("worker", "--http-host")],
)
def test_an_unprotected_public_listener_is_refused(
    command: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = ["--nats-url", "nats://127.0.0.1:1"] if command == "worker" else []
    place = ["--data-dir", str(tmp_path / "data"), *servers]

    assert main([command, *place, flag, "0.0.0.0"]) == 2
    assert f"{flag} 0.0.0.0 can be reached from other machines" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_certificate_requires_its_key(papers: Papers, tmp_path: Path) -> None:
    def settings(**files: Path) -> Settings:
        return Settings(data_dir=tmp_path, **files)

    assert server_certificate(settings()) is None
    with pytest.raises(InvalidSettings, match=r"WORKSPACED_TLS_KEY \(--tls-key\) is missing"):
        server_certificate(settings(tls_certificate=papers.certificate))
    with pytest.raises(InvalidSettings, match="not a certificate and its key"):
        server_certificate(settings(tls_certificate=papers.certificate, tls_key=papers.stranger))
    with pytest.raises(InvalidSettings, match="WORKSPACED_NATS_CA"):
        client_context(tmp_path / "nothing.pem")


@pytest.mark.parametrize(
    ("host", "name", "url"),
    [
        ("127.0.0.1", None, "nats://127.0.0.1:4222"),
        ("0.0.0.0", None, "nats://127.0.0.1:4222"),
        ("0.0.0.0", "bus.example", "nats://bus.example:4222"),
        ("::", None, "nats://[::1]:4222"),
        ("10.1.2.3", None, "nats://10.1.2.3:4222"),
    ],
)
def test_the_url_of_a_listener_uses_the_host_name_of_clients(
    host: str, name: str | None, url: str
) -> None:
    assert Listeners(host=host, name=name).url("nats", host, 4222) == url


def test_a_given_host_name_is_verified_against_the_certificate(papers: Papers) -> None:
    names, certificate = {"::1": "localhost"}, Certificate(papers.certificate, papers.key)
    plain, secret = Listeners(names=names), Listeners(names=names, certificate=certificate)

    assert plain.url("http", "::1", 80) == "http://[::1]:80"
    assert secret.url("http", "::1", 80) == "https://localhost:80"
