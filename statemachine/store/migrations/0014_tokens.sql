-- Bearer tokens for the gateway's HTTP interface, and keys without the right to run commands. Safe beside programs of
-- earlier schemas: they read neither the table nor the column.

alter table credential add column exec boolean not null default true;
update credential set exec = false where kind = 'frontend';
comment on column credential.exec is 'Whether a chat service may run commands, or a frontend see those that run.';

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
