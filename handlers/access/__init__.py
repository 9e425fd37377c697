"""Access to NATS: which clients may connect, and on which subjects they may publish and subscribe.

- `accounts`, `permissions`: the accounts of NATS and the permissions of the static roles
- `issued_keys`: keys that operators, chat services and provisioners obtain, and what they permit
- `identities`, `server_config`: the data directory's NKeys, and nats-server's configuration
- `auth_callout`, `auth_protocol`: decides at each connect whether an issued key may connect
- `disconnect`: closes connections whose key has become invalid
- `nkey`, `nats_jwt`: NATS's key pairs and tokens
"""
