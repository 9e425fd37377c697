"""`workspaced demo`: a workspace from its creation to its end on real servers, with times."""
