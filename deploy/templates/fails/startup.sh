#!/bin/sh
set -eu

case $WORKSPACED_PARAM_PHASE in
startup)
    echo "error: the port of the development server is taken" >&2
    exit 3
    ;;
timeout)
    echo "waiting for a database that does not come"
    exec sleep 3600
    ;;
esac
echo "all is well"
