-- Bearer tokens for the gateway's HTTP interface. Safe beside programs of earlier schemas: they do not read the table.

create table token (
    id              uuid primary key,
    digest          bytea not null unique,
    role            text not null check (role in ('operator', 'chat-service', 'chat', 'frontend')),
    chat_ids        uuid[] not null,
    organization_id uuid,
    owner_id        uuid,
    owner_name      text,
    exec            boolean not null,
    created_at      timestamptz not null default clock_timestamp(),
    expires_at      timestamptz not null,
    revoked_at      timestamptz
);
comment on table token is 'Bearer tokens that were issued, and the rights of each. The tokens themselves are not stored.';
comment on column token.digest is 'SHA-256 of the token.';
comment on column token.exec is 'Whether its holder may run commands, or, for a frontend, see those that run.';
create index token_by_end on token (expires_at);
