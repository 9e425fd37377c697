"""Runs a provisioner: `python -m workspaced.provisioning my_module:build` or `my_file.py:build`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from workspaced.provisioning.serving import Provisioner


def main() -> None:
    """Find the provisioner that the command line names, and run it until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m workspaced.provisioning", description=__doc__)
    parser.add_argument(
        "target", help="MODULE:NAME or FILE.py:NAME of what @workspaced.provisioner made"
    )
    parser.add_argument("--nats-url", help="URL of NATS (default: WORKSPACED_NATS_URL)")
    given = parser.parse_args()
    module, _, name = given.target.rpartition(":")
    if not module:
        parser.error(f"{given.target!r} names no provisioner: write MODULE:NAME")
    found = getattr(_load(module), name, None)
    if not isinstance(found, Provisioner):
        parser.error(f"{name!r} of {module} was not made by @workspaced.provisioner")
    found.main(given.nats_url)


def _load(module: str) -> ModuleType:
    if not module.endswith(".py"):
        sys.path.insert(0, "")
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{module} is no Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


if __name__ == "__main__":
    main()
