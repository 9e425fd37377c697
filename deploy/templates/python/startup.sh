#!/bin/sh
# Runs the tests: the workspace is ready when they pass.
set -eu

cd "$WORKSPACED_PARAM_PROJECT"
exec ../.venv/bin/python -m unittest -v
