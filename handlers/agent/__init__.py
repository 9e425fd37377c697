"""The agent process: it connects from a workspace, runs scripts and reports; it outlives its provisioner."""
