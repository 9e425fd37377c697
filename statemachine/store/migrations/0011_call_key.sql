-- A secret key with which workers make digests of the content of calls: two requests with the same call_id are compared
-- by it, because stored arguments are masked. Safe with programs of 0010: their calls have no digest, and then no other
-- request conflicts with them.

create table call_key (
    one boolean primary key default true check (one),
    key bytea not null
);
comment on table call_key is 'The secret key of the digests in call.body.';
insert into call_key (key)
values (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));
