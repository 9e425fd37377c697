-- What a worker needs to notice that NATS lost something, and to ask for open builds again.
-- Safe beside workers of 0001: they write neither table; a job of theirs is not asked for again.

create table stream_seen (
    stream  text primary key,
    created text not null,
    last    bigint not null
);
comment on table stream_seen is 'Each stream as it was seen last: another creation time, or a lower last sequence, is a loss.';

create table job (
    build_id  uuid primary key,
    chat_id   uuid not null,
    subject   text not null,
    payload   bytea not null,
    not_after timestamptz not null
);
comment on table job is 'Builds that were asked for and may still begin, as they were published.';
create index job_by_end on job (not_after);
