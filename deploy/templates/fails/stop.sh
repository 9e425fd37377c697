#!/bin/sh
set -eu

if [ "$WORKSPACED_PARAM_PHASE" = stop ]; then
    echo "error: the host does not let go of the workspace" >&2
    exit 5
fi
echo "stopped"
