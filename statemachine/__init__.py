"""What a workspace is: the pure core. It imports no asyncio, no database, no bus; `store` is its only I/O."""
