-- Adds :copies chats, each with a call that waits, all copies of one chat: :model. They have no
-- event log, which nothing reads while calls wait.
-- Run statement by statement; VACUUM takes no transaction.

set synchronous_commit = off;

create table waiting as
select gen_random_uuid() as id, gen_random_uuid() as workspace_id, n, md5((n / 10)::text)::uuid as owner_id
from generate_series(1, :copies) as n;

insert into chat (chat_id, version, state, organization_id, owner_id, workspace_id, wakes, snapshot)
select w.id, c.version, c.state, c.organization_id, w.owner_id, w.workspace_id, c.wakes,
       replace(replace(c.snapshot::text, c.chat_id::text, w.id::text),
               c.workspace_id::text, w.workspace_id::text)::jsonb
from waiting w, chat c where c.chat_id = ':model';

insert into call (chat_id, call_id, ord, body, asked_at)
select w.id, c.call_id, c.ord, replace(c.body::text, c.chat_id::text, w.id::text)::jsonb, c.asked_at
from waiting w, call c where c.chat_id = ':model' and c.resolved_at is null;

insert into workspace (workspace_id, chat_id, owner_id, name)
select w.workspace_id, w.id, w.owner_id, m.name || '-' || w.n
from waiting w, workspace m where m.chat_id = ':model';

insert into alarm (at, chat_id)
select a.at + (w.n % 3600) * interval '1 s', w.id from waiting w, alarm a where a.chat_id = ':model';

drop table waiting;

vacuum (analyze) chat, call, workspace, alarm;

checkpoint;
