-- One alarm for all timers of a time instead of a message for each timer, and no outbox: what follows from a chat's row
-- is published again from the row.

create table alarm (
    at         timestamptz not null,
    chat_id    uuid not null,
    handled_at timestamptz,
    primary key (at, chat_id)
);
comment on table alarm is 'When workers look at chats, because a timer may be due. A handled alarm stays until all that follows is published.';

-- Workers look at every chat that needs a timer, and set its next alarm. Of chats whose messages may not be published
-- they publish what is missing.
insert into alarm (at, chat_id)
select date_bin('250 ms', transaction_timestamp(), 'epoch'), chat_id from chat where wakes;
insert into alarm (at, chat_id, handled_at)
select distinct date_bin('250 ms', transaction_timestamp(), 'epoch') - interval '250 ms', chat_id, timestamp 'epoch'
from outbox;

-- A job is marked when it was published: to publish it again later could make a second workspace. Programs of 0009 mark
-- nothing; their jobs count as published, except those that they left.
alter table job add column published boolean not null default true;
update job set published = false where build_id in (select message_id::uuid from outbox where lane = 1);
create index job_unpublished on job (chat_id) where not published;

-- Programs of 0009 set no alarms. While they run beside others, each of their timers makes workers look at these.
create function alarm_for_outbox() returns trigger language plpgsql as $$
begin
    insert into alarm (at, chat_id) values (date_bin('250 ms', clock_timestamp(), 'epoch'), new.chat_id)
    on conflict (at, chat_id) do update set handled_at = null;
    return null;
end $$;
create trigger alarm_for_outbox after insert on outbox for each row execute function alarm_for_outbox();
comment on table outbox is 'Only programs of schema 0009 use it.';
