-- Gives a database the age of many chats that are over, all copies of one: :model.
-- :chats of them, with :rows log rows each. Run statement by statement; VACUUM takes no transaction.

set synchronous_commit = off;

create table aged as
select gen_random_uuid() as id, gen_random_uuid() as workspace_id, n,
       md5((n / 10)::text)::uuid as owner_id
from generate_series(1, :chats) as n;

insert into chat (chat_id, version, state, organization_id, owner_id, workspace_id, wakes, snapshot)
select a.id, c.version, c.state, c.organization_id, a.owner_id, a.workspace_id, c.wakes,
       jsonb_set(c.snapshot, '{chat_id}', to_jsonb(a.id::text))
from aged a, chat c where c.chat_id = ':model';

insert into event_log (chat_id, seq, event, outcome, state_before, state_after, version, at, cause,
                       deadline)
select a.id, s.n, e.event, e.outcome, e.state_before, e.state_after, e.version, e.at, e.cause,
       e.deadline
from aged a, generate_series(1, :rows) as s(n),
     (select row_number() over (order by seq) as k, count(*) over () as all_of, *
      from event_log where chat_id = ':model') as e
where e.k = 1 + (s.n - 1) % e.all_of;

insert into event_identity (chat_id, digest)
select a.id, uuid_send(gen_random_uuid()) from aged a, generate_series(1, :rows);

insert into call (chat_id, call_id, ord, body, asked_at, resolved_at, is_error, result)
select a.id, c.call_id, c.ord, c.body, c.asked_at, c.resolved_at, c.is_error, c.result
from aged a, call c where c.chat_id = ':model';

insert into workspace (workspace_id, chat_id, owner_id, name)
select a.workspace_id, a.id, a.owner_id, w.name || '-' || a.n
from aged a, workspace w where w.chat_id = ':model';

drop table aged;

vacuum (analyze) chat, event_log, event_identity, call, workspace;

checkpoint;
