-- What is needed to make a snapshot, or a whole database, good again.
-- Safe beside workers of 0002: they write neither column, and neither read nor write the table.

alter table event_log add column cause jsonb, add column deadline timestamptz;
comment on column event_log.cause is 'The event that this one of ours followed from; null: from no other, or written before this.';
comment on column event_log.deadline is 'The limit that the entry set and that holds after it; null: none, or written before this.';

create table origin (
    one  boolean primary key default true check (one),
    name text not null
);
comment on table origin is 'The database that the last worker to start found itself in. Another one, or none: the rows went back.';
