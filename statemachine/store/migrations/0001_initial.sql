-- The whole schema of the first version. Times are timestamptz, ids are uuid, documents are jsonb.

create table chat (
    chat_id         uuid primary key,
    version         bigint not null default 0,
    state           text not null default 'none',
    organization_id uuid,
    owner_id        uuid,
    workspace_id    uuid,
    wakes           boolean not null default false,
    snapshot        jsonb not null,
    updated_at      timestamptz not null default now()
) with (fillfactor = 70);
comment on table chat is 'One row a chat: the snapshot that its event log folds to.';
comment on column chat.wakes is 'A timer is set for it: armed again when a worker starts.';
create index chat_that_wakes on chat (chat_id) where wakes;
create index chat_by_workspace on chat (workspace_id) where workspace_id is not null;
create index chat_by_organization on chat (organization_id, chat_id);

create table event_log (
    chat_id      uuid not null references chat,
    seq          bigint not null,
    event        jsonb not null,
    outcome      text not null,
    state_before text not null,
    state_after  text not null,
    version      bigint,
    at           timestamptz not null,
    primary key (chat_id, seq)
);
comment on table event_log is 'Append-only: every fact and request of a chat, with what it did. version is null where nothing moved.';

create table event_identity (
    chat_id uuid not null,
    digest  bytea not null,
    primary key (chat_id, digest)
);
comment on table event_identity is 'sha256(source, id), 16 bytes, of each event applied; stays when the log is archived.';

create table call (
    chat_id     uuid not null references chat,
    call_id     text not null,
    ord         bigint not null,
    body        jsonb not null,
    asked_at    timestamptz not null,
    resolved_at timestamptz,
    is_error    boolean,
    result      jsonb,
    primary key (chat_id, call_id),
    constraint resolved_with_a_result check ((resolved_at is null) = (result is null))
) with (fillfactor = 70);
comment on table call is 'A tool call: open while result is null. Waiting costs nothing.';
create index call_open on call (chat_id, ord) where resolved_at is null;

create table cancellation (
    chat_id uuid not null,
    call_id text not null,
    at      timestamptz not null,
    primary key (chat_id, call_id)
);
comment on table cancellation is 'Cancellations that overtook their request.';

create table workspace (
    workspace_id uuid primary key,
    chat_id      uuid not null references chat,
    owner_id     uuid not null,
    name         text not null,
    deleted_at   timestamptz
);
comment on table workspace is 'The names in use, by owner.';
create index workspace_by_owner on workspace (owner_id, lower(name)) where deleted_at is null;

create table outbox (
    id         bigint generated always as identity primary key,
    chat_id    uuid not null,
    lane       smallint not null,
    subject    text not null,
    message_id text not null,
    version    bigint,
    due        timestamptz,
    payload    bytea not null
);
comment on table outbox is 'Effects committed with their move and not known to be published yet.';
create index outbox_by_chat on outbox (chat_id);

create table template (
    template_id       uuid primary key,
    organization_id   uuid not null,
    name              text not null,
    active_version_id uuid not null
);
create unique index template_by_name on template (organization_id, lower(name));

create table template_version (
    version_id  uuid primary key,
    template_id uuid not null,
    manifest    jsonb not null,
    readme      text,
    sha256      text not null,
    archive     bytea not null,
    created_at  timestamptz not null default now()
);
comment on table template_version is 'Immutable. archive is the folder as tar.gz.';
create index template_version_by_template on template_version (template_id, created_at);
alter table template_version alter column archive set storage external;

create table setting (
    key        text primary key,
    value      text not null,
    changed_at timestamptz not null default now()
);

create table credential (
    public_key   text primary key,
    kind         text not null check (kind in ('agent', 'frontend')),
    chat_ids     uuid[] not null,
    workspace_id uuid,
    build_id     uuid,
    agent_id     uuid,
    expires_at   timestamptz not null,
    issued_at    timestamptz not null default now()
);
comment on table credential is 'Public keys of agents and frontends; the seeds are not kept.';
