-- Keys for people and provisioners, keys that are taken back, and whom to cut off when they are.
-- Safe beside programs of 0003: they write no new column and neither table. A key of a new kind they refuse; one
-- that is revoked has run out for them too. Whom they let in is not noted, and is not cut off before it leaves.

alter table credential
    drop constraint credential_kind_check,
    add constraint credential_kind_check check (kind in (
        'agent', 'frontend', 'operator', 'chat-service', 'provisioner', 'worker', 'gateway')),
    add column name text,
    add column pool text,
    add column revoked_at timestamptz;
comment on table credential is 'Public keys that were issued, and what each is good for; the seeds are not kept.';
comment on column credential.name is 'What a key of a static role is called; of a provisioner, its name on the bus.';
comment on column credential.revoked_at is 'Taken back then; expires_at is not later.';

create table provisioner_name (
    name     text primary key,
    pool     text not null,
    bound_at timestamptz not null default now()
);
comment on table provisioner_name is 'Names whose facts count for one pool only. Never changed: what a name said once must mean the same for ever.';

create table connection (
    server      text not null,
    client      bigint not null,
    server_name text not null,
    public_key  text not null,
    chat_id     uuid,
    expires_at  timestamptz not null,
    since       timestamptz not null default clock_timestamp(),
    primary key (server, client)
);
comment on table connection is 'Who was let in by an issued key, and where: to be cut off there. Many have left since.';
comment on column connection.chat_id is 'Of an agent: it is cut off when its build is superseded.';
create index connection_by_key on connection (public_key, since);
create index connection_by_chat on connection (chat_id) where chat_id is not null;
create index connection_by_end on connection (expires_at);
