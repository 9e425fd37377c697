#!/bin/sh
set -eu

if [ "$WORKSPACED_PARAM_PHASE" = shutdown ]; then
    echo "error: the changes could not be saved" >&2
    exit 4
fi
echo "saved"
