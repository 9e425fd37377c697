"""The pure core: states, facts and rules of chats and workspaces. Only its package `store` does I/O."""
