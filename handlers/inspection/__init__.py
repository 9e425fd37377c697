"""What runs, what waits and what was thrown away: read for operators by workers and by the command line."""
