-- What a worker needs to publish again what a NATS server had acknowledged and lost because it crashed.
-- Safe with programs of 0008: they do not write the table, so more than necessary is published again.

create table nats_server (
    one     boolean primary key default true check (one),
    id      text not null,
    seen_at timestamptz not null
);
comment on table nats_server is 'The server process that workers used last. All that was committed before seen_at had been published.';

alter table outbox add column at timestamptz not null default clock_timestamp();

-- Changed rows are read by their time. These indexes are tiny, and do not prevent HOT updates.
create index chat_by_update on chat using brin (updated_at);
create index call_by_answer on call using brin (resolved_at);
