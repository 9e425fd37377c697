-- name: insert_chats
-- Rows must exist before they can be locked; a chat begins with its first event.
insert into chat (chat_id, snapshot)
select id, jsonb_build_object('chat_id', id) from unnest($1::uuid[]) as id order by id
on conflict do nothing

-- name: lock_chats
-- The same order everywhere, so that two batches never wait for each other in a circle.
-- The time is taken outside: beside the lock it would be that before the wait.
with locked as materialized (
    select chat_id, snapshot from chat where chat_id = any($1::uuid[]) order by chat_id for update
)
select chat_id::text as chat_id, snapshot, clock_timestamp() as now from locked

-- name: known_identities
-- After the lock, in a statement of its own: one that waits for a lock still reads other tables as of its start.
select chat_id::text as chat_id, digest from event_identity
where chat_id = any($1::uuid[]) and digest = any($2::bytea[])

-- name: calls
-- Calls by key, open or not: the same call_id again is the same call.
select c.body, c.is_error, c.result
from call c join unnest($1::uuid[], $2::text[]) as k(chat_id, call_id) using (chat_id, call_id)

-- name: open_calls
-- Only when a chat's move may end a wait.
select body from call where chat_id = any($1::uuid[]) and resolved_at is null order by chat_id, ord

-- name: cancellations
-- Those that overtook their request by ten minutes at most.
select c.chat_id::text as chat_id, c.call_id
from cancellation c join unnest($1::uuid[], $2::text[]) as k(chat_id, call_id) using (chat_id, call_id)
where c.at > clock_timestamp() - interval '10 minutes'

-- name: lock_owners
-- Names are given out by one transaction at a time an owner. Chats are locked before, so no circle.
select pg_advisory_xact_lock(hashtextextended(id, 0)) from unnest($1::text[]) as id order by id

-- name: names
-- What an owner's workspaces are called, without case.
select owner_id::text as owner_id, lower(name) as name from workspace
where owner_id = any($1::uuid[]) and deleted_at is null

-- name: templates
-- By organization (to list) or by id (to build), with the active version.
select t.template_id::text as template_id, t.organization_id::text as organization_id,
       t.active_version_id::text as version_id
from template t where t.organization_id = any($1::uuid[]) or t.template_id = any($2::uuid[])

-- name: versions
-- Without the archive, which only provisioners need.
select version_id::text as version_id, template_id::text as template_id, manifest, readme, sha256,
       length(archive) as size
from template_version where version_id = any($1::uuid[])

-- name: settings
-- Read with each judgement that asks them: there is no cache that could be old.
select key, value from setting

-- name: write_chats
-- The row is locked by this transaction.
update chat set version = n.version, state = n.state, organization_id = n.organization_id,
    owner_id = n.owner_id, workspace_id = n.workspace_id, wakes = n.wakes,
    snapshot = n.snapshot, updated_at = clock_timestamp()
from unnest($1::uuid[], $2::bigint[], $3::text[], $4::uuid[], $5::uuid[], $6::uuid[],
            $7::boolean[], $8::jsonb[])
    as n(chat_id, version, state, organization_id, owner_id, workspace_id, wakes, snapshot)
where chat.chat_id = n.chat_id

-- name: write_log
-- Fails on (chat_id, seq) if a chat was ever written without its lock.
insert into event_log (chat_id, seq, event, outcome, state_before, state_after, version, at)
select * from unnest($1::uuid[], $2::bigint[], $3::jsonb[], $4::text[], $5::text[], $6::text[],
                     $7::bigint[], $8::timestamptz[])

-- name: write_identities
insert into event_identity (chat_id, digest) select * from unnest($1::uuid[], $2::bytea[])

-- name: write_calls
-- A call is inserted when it comes and updated while it waits.
insert into call (chat_id, call_id, ord, body, asked_at, resolved_at, is_error, result)
select n.chat_id, n.call_id, n.ord, n.body, n.asked_at,
       case when n.result is null then null else clock_timestamp() end, n.is_error, n.result
from unnest($1::uuid[], $2::text[], $3::bigint[], $4::jsonb[], $5::timestamptz[], $6::boolean[],
            $7::jsonb[])
    as n(chat_id, call_id, ord, body, asked_at, is_error, result)
on conflict (chat_id, call_id) do update
set body = excluded.body, resolved_at = excluded.resolved_at, is_error = excluded.is_error,
    result = excluded.result
where call.resolved_at is null

-- name: write_cancellations
-- A later one counts anew: it may overtake its request by ten minutes too.
insert into cancellation (chat_id, call_id, at)
select chat_id, call_id, clock_timestamp()
from unnest($1::uuid[], $2::text[]) as n(chat_id, call_id) group by chat_id, call_id
on conflict (chat_id, call_id) do update set at = excluded.at

-- name: forget_cancellations
-- Those whose request did not come in time; done when another is written, not on a timer.
delete from cancellation where at < clock_timestamp() - interval '10 minutes'

-- name: write_names
insert into workspace (workspace_id, chat_id, owner_id, name)
select * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[])
on conflict do nothing

-- name: free_names
-- The workspace is gone: its owner may use the name again.
update workspace set deleted_at = clock_timestamp()
from unnest($1::uuid[], $2::uuid[]) as n(workspace_id, chat_id)
where workspace.workspace_id = n.workspace_id and workspace.chat_id = n.chat_id
  and deleted_at is null

-- name: write_outbox
insert into outbox (chat_id, lane, subject, message_id, version, due, payload)
select * from unnest($1::uuid[], $2::smallint[], $3::text[], $4::text[], $5::bigint[],
                     $6::timestamptz[], $7::bytea[])
returning id

-- name: outbox_of
-- What a redelivered event's chat has not published yet.
select id, chat_id::text as chat_id, lane, subject, message_id, version, due, payload
from outbox where chat_id = any($1::uuid[]) order by id

-- name: delete_outbox
delete from outbox where id = any($1::bigint[])

-- name: now
select clock_timestamp()

-- name: chat
select snapshot from chat where chat_id = $1::uuid

-- name: chats
-- By id, a page at a time.
select chat_id::text as chat_id, snapshot from chat
where ($1::uuid is null or organization_id = $1) and ($2::uuid is null or owner_id = $2)
  and ($3::text[] is null or state = any($3)) and ($4::uuid is null or chat_id > $4)
order by chat_id limit $5

-- name: calls_waiting
select body from call where chat_id = $1::uuid and resolved_at is null order by ord

-- name: answered
select 1 from call
where chat_id = $1::uuid and call_id = $2 and resolved_at is not null

-- name: log
select seq, event, outcome, state_before, state_after, version, at from event_log
where chat_id = $1::uuid and seq > $2 order by seq limit $3

-- name: waking
-- For the start of a worker, a page at a time: timers are armed again from here.
select snapshot from chat where wakes and ($1::uuid is null or chat_id > $1) order by chat_id limit $2

-- name: had
-- Workspaces that are some chat's.
select workspace_id::text as workspace_id from chat where workspace_id = any($1::uuid[])

-- name: orphaned
-- For operators: chats that remember a workspace which runs on without one. Each has a timer.
select snapshot from chat
where wakes and jsonb_path_exists(snapshot, '$.former[*].orphaned_at')
  and ($1::uuid is null or chat_id > $1) order by chat_id limit $2

-- name: pools
-- Every pool that a template version names; its consumer must exist.
select distinct manifest ->> 'pool' as pool from template_version

-- name: archive
-- A piece of the folder's tar.gz.
select substring(archive from $2 + 1 for $3) as piece from template_version where version_id = $1::uuid

-- name: push_version
insert into template_version (version_id, template_id, manifest, readme, sha256, archive)
values ($1, $2, $3, $4, $5, $6) on conflict (version_id) do nothing

-- name: activate
insert into template (template_id, organization_id, name, active_version_id) values ($1, $2, $3, $4)
on conflict (template_id) do update set active_version_id = excluded.active_version_id, name = excluded.name

-- name: history
-- Without manifest and archive: when which version came, and which one is built now.
select v.version_id::text as version_id, v.created_at as pushed_at, length(v.archive) as size,
       v.version_id = t.active_version_id as active
from template_version v join template t using (template_id)
where v.template_id = $1::uuid order by v.created_at, v.version_id

-- name: activate_again
-- An earlier version becomes the active one; builds that were made keep theirs.
update template set active_version_id = v.version_id, name = v.manifest ->> 'name'
from template_version v
where v.version_id = $1::uuid and template.template_id = v.template_id
returning template.template_id::text as template_id

-- name: put_setting
insert into setting (key, value) values ($1, $2)
on conflict (key) do update set value = excluded.value, changed_at = now()

-- name: issue_credential
insert into credential (public_key, kind, chat_ids, workspace_id, build_id, agent_id, expires_at)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (public_key) do update
set kind = excluded.kind, chat_ids = excluded.chat_ids, workspace_id = excluded.workspace_id,
    build_id = excluded.build_id, agent_id = excluded.agent_id, expires_at = excluded.expires_at

-- name: credential
-- With the newest build of the chat's workspace, which an agent's must be of.
select c.kind, c.chat_ids::text[] as chat_ids, c.workspace_id::text as workspace_id,
       c.build_id::text as build_id, c.agent_id::text as agent_id, c.expires_at,
       (select snapshot from chat where chat_id = c.chat_ids[1]) as snapshot
from credential c where c.public_key = $1
