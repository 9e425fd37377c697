"""The conformance suite for provisioners: `python -m workspaced.conformance --help`."""
