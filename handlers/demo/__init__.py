"""`workspaced demo`: the whole way of a workspace on real servers, with its times."""
