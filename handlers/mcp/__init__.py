"""`workspaced mcp`: the tools for clients of the Model Context Protocol, on stdio and over HTTP.

It is a chat service: it stands on the Python client, and holds nothing that another replica would need. It needs the
extra `workspaced[mcp]`.
"""
