#!/bin/sh
# The start step.
set -eu

echo "step 1 of 2: reserving a place"
case $WORKSPACED_PARAM_PHASE in
quota)
    # A typed error takes the place of the last lines of output.
    cat > "$WORKSPACED_ERROR_FILE" <<'JSON'
{
  "error": "insufficient quota: this workspace costs 5 credits",
  "error_code": "INSUFFICIENT_QUOTA",
  "quota": { "credits_consumed": 48, "budget": 50 }
}
JSON
    exit 1
    ;;
build)
    echo "step 2 of 2: fetching the image" >&2
    echo "error: image registry.invalid/fails:latest was not found" >&2
    exit 1
    ;;
agent)
    # Agents are started through this program where it exists: here, on a host that is out of reach.
    cat > "$WORKSPACED_AGENT_LAUNCHER" <<'SH'
#!/bin/sh
echo "the host of this workspace is out of reach" >&2
exit 1
SH
    chmod +x "$WORKSPACED_AGENT_LAUNCHER"
    ;;
esac
echo "step 2 of 2: done"
