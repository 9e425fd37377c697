-- name: look
-- Everything that a batch reads about its chats, as of one moment: snapshots with the versions of their rows, known
-- events, open calls, the pools that senders are bound to, and, if the batch has requests, calls by key, open
-- calls of other chats, and cancellations of the last ten minutes that came before their call. Open calls are read of the
-- chats $3, and of the chats $8 that are not in a state of $9.
select 'now' as kind, null as chat_id, null::bytea as digest, null as call_id, null::jsonb as body,
       null::boolean as is_error, null::jsonb as result, null::bigint as row_version, clock_timestamp() as now
union all
select 'chat', chat_id::text, null, null, snapshot, null, null, xmin::text::bigint, null
from chat where chat_id = any($4::uuid[])
union all
select 'known', chat_id::text, digest, null, null, null, null, null, null
from unnest($1::uuid[], $2::bytea[]) as k(chat_id, digest) cross join lateral (
    select from event_identity e where e.chat_id = k.chat_id and e.digest = k.digest limit 1
) as found
union all
select 'waiting', null, null, null, body, null, null, null, null
from call where chat_id = any($3::uuid[]) and resolved_at is null
union all
select 'bound', pool, null, name, null, null, null, null, null from provisioner_name where name = any($5::text[])
-- not for facts
union all
select 'call', null, null, null, found.body, found.is_error, found.result, null, null
from unnest($6::uuid[], $7::text[]) as k(chat_id, call_id) cross join lateral (
    select * from call c where c.chat_id = k.chat_id and c.call_id = k.call_id limit 1
) as found
union all
select 'waiting', null, null, null, call.body, null, null, null, null
from chat join call using (chat_id)
where call.chat_id = any($8::uuid[]) and chat.chat_id = any($8::uuid[]) and chat.state <> all($9::text[])
  and call.resolved_at is null
union all
select 'canceled', k.chat_id::text, null, k.call_id, null, null, null, null, null
from unnest($6::uuid[], $7::text[]) as k(chat_id, call_id) cross join lateral (
    select at from cancellation c where c.chat_id = k.chat_id and c.call_id = k.call_id limit 1
) as found
where found.at > clock_timestamp() - interval '10 minutes'
-- end

-- name: lock
-- Waits until no other transaction has the lock of that name.
select pg_advisory_xact_lock(hashtextextended($1, 1))

-- name: look_up
-- Data for evaluating calls: templates by organization (to list) or by id (to build) with their active versions,
-- other versions, settings, the key of digests, the names of owners' workspaces, and those of the workspaces $6 that
-- are the current workspace of a chat. Versions never change, so those that the caller knows ($4) are not read again.
-- Archives are left out: only provisioners need them. Callers cache nothing that can change.
with heads as (
    select template_id, organization_id, active_version_id from template
    where organization_id = any($1::uuid[]) or template_id = any($2::uuid[])
)
select 'template' as kind, template_id::text as id, organization_id::text as belongs_to,
       active_version_id::text as value, null::jsonb as manifest, null as readme, null as sha256, null::int as size
from heads
union all
select 'version', version_id::text, template_id::text, null, manifest, readme, sha256, length(archive)
from template_version
where (version_id = any($3::uuid[]) or version_id in (select active_version_id from heads))
  and version_id <> all($4::uuid[])
union all
select 'setting', key, null, value, null, null, null, null from setting
union all
select 'call_key', null, null, encode(key, 'hex'), null, null, null, null from call_key
union all
select 'name', null, owner_id::text, name, null, null, null, null from workspace
where owner_id = any($5::uuid[]) and deleted_at is null
union all
select 'current', workspace_id::text, null, null, null, null, null, null from chat
where workspace_id = any($6::uuid[])

-- name: settings
-- Settings are read each time they are needed, so that a change takes effect at once.
select key, value from setting

-- name: write
-- Everything that a batch writes, in one statement; most parameters hold the rows of one table as a JSON array, and
-- documents are arrays beside them, which is cheaper. A chat is skipped, with all that belongs to it, if another statement
-- has changed its row since the caller read it: row_version is the version that was read, 0 for a chat that did not
-- exist, null to write it in any case. It is also skipped if one of its events was applied before. All chats are skipped
-- if a provisioner of $10 is bound to a pool.
-- Rows are locked in the order of their ids, before any is inserted, so two batches can't deadlock. A chat without a
-- snapshot is only compared and locked. A call is inserted when it arrives and updated while it is open; an answered one is
-- only marked as in conflict. If two statements give the same name to workspaces of one owner, the index
-- workspace_requested_name makes the later one fail. Old jobs are deleted when another one is written; rows that another
-- statement has locked are left. Rows are found one by one (lateral) or by all keys (any), so that no join reads a whole
-- table. They are not found by their ctid: a row that changed while the statement waited for its lock has another one.
with given as materialized (
    select * from rows from (
        unnest($2::jsonb[]),
        json_to_recordset($1::json) as (
            chat_id uuid, version bigint, state text, organization_id uuid, owner_id uuid, workspace_id uuid,
            wakes boolean, rests_since timestamptz, has_previous boolean, row_version bigint)
    ) as n(snapshot)
), events as materialized (
    select chat_id, decode(digest, 'hex') as digest from json_to_recordset($5::json) as n(chat_id uuid, digest text)
), known as materialized (
    select chat_id from events cross join lateral (
        select from event_identity e where e.chat_id = events.chat_id and e.digest = events.digest limit 1
    ) as found
), new as materialized (
    select * from given
    where chat_id not in (select chat_id from known)
      and not exists (select from provisioner_name where name = any($10::text[]))
), unchanged as materialized (
    select n.* from (select * from new order by chat_id) as n cross join lateral (
        select from chat
        where chat.chat_id = n.chat_id and (n.row_version is null or chat.xmin::text::bigint = n.row_version)
        for update
    ) as found
), created as (
    insert into chat (chat_id, version, state, organization_id, owner_id, workspace_id, wakes, rests_since, has_previous,
                      snapshot)
    select chat_id, version, state, organization_id, owner_id, workspace_id, wakes, rests_since, has_previous, snapshot
    from new where coalesce(row_version, 0) = 0 and chat_id not in (select chat_id from unchanged)
    order by chat_id
    on conflict do nothing returning chat_id
), skipped as materialized (
    select chat_id from given
    where chat_id not in (select chat_id from unchanged) and chat_id not in (select chat_id from created)
), chats as (
    update chat set version = n.version, state = n.state, organization_id = n.organization_id,
        owner_id = n.owner_id, workspace_id = n.workspace_id, wakes = n.wakes,
        rests_since = n.rests_since, has_previous = n.has_previous, snapshot = n.snapshot, updated_at = clock_timestamp()
    from unchanged n
    where chat.chat_id = any(array(select chat_id from unchanged)) and chat.chat_id = n.chat_id and n.snapshot is not null
), entries as (
    insert into event_log (chat_id, seq, event, outcome, state_before, state_after, version, at, cause, deadline)
    select chat_id, seq, event, outcome, state_before, state_after, version, at, cause, deadline from rows from (
        unnest($4::jsonb[]),
        json_to_recordset($3::json) as (
            chat_id uuid, seq bigint, outcome text, state_before text, state_after text, version bigint, at timestamptz,
            cause jsonb, deadline timestamptz)
    ) as n(event)
    where chat_id not in (select chat_id from skipped)
), identities as (
    insert into event_identity (chat_id, digest)
    select chat_id, digest from events where chat_id not in (select chat_id from skipped)
), calls as (
    insert into call (chat_id, call_id, ord, body, asked_at, resolved_at, is_error, result)
    select n.chat_id, n.call_id, n.ord, n.body, n.asked_at,
           case when n.result is null then null else clock_timestamp() end, n.is_error, n.result
    from rows from (
        unnest($7::jsonb[]), unnest($8::jsonb[]),
        json_to_recordset($6::json) as (chat_id uuid, call_id text, ord bigint, asked_at timestamptz, is_error boolean)
    ) as n(body, result)
    where n.chat_id not in (select chat_id from skipped)
    on conflict (chat_id, call_id) do update
    set body = excluded.body, resolved_at = excluded.resolved_at,
        is_error = case when call.resolved_at is null then excluded.is_error else call.is_error end,
        result = case when call.resolved_at is null then excluded.result else call.result end
    where call.resolved_at is null
       or excluded.resolved_at is not null and excluded.body @> '{"conflict": true}'
          and not call.body @> '{"conflict": true}'
), alarms as (  -- an alarm of the same time that is being deleted must stay: see delete_alarms
    insert into alarm (at, chat_id)
    select at, chat_id from json_to_recordset($9::json) as n(at timestamptz, chat_id uuid)
    where chat_id not in (select chat_id from skipped)
    order by at, chat_id
    on conflict (at, chat_id) do update set handled_at = null
-- not for facts
), rung as materialized (
    select found.* from (
        select * from json_to_recordset($11::json) as n(at timestamptz, chat_id uuid)
        where chat_id not in (select chat_id from skipped) order by at, chat_id
    ) as n cross join lateral (
        select * from alarm where alarm.at = n.at and alarm.chat_id = n.chat_id for update
    ) as found
), handled as (
    update alarm set handled_at = clock_timestamp() from rung
    where alarm.at = any(array(select at from rung)) and alarm.chat_id = any(array(select chat_id from rung))
      and alarm.at = rung.at and alarm.chat_id = rung.chat_id
), names as (
    insert into workspace (workspace_id, chat_id, owner_id, name, requested, deleted_at)
    select workspace_id, chat_id, owner_id, name, requested, case when deleted then clock_timestamp() end
    from json_to_recordset($12::json)
        as n(workspace_id uuid, chat_id uuid, owner_id uuid, name text, requested boolean, deleted boolean)
    where chat_id not in (select chat_id from skipped)
    order by owner_id, lower(name)
    on conflict (workspace_id) do nothing
), gone as materialized (
    select * from json_to_recordset($13::json) as n(workspace_id uuid, chat_id uuid)
    where chat_id not in (select chat_id from skipped)
), freed as (
    update workspace set deleted_at = coalesce(deleted_at, clock_timestamp()) from gone
    where workspace.workspace_id = any(array(select workspace_id from gone))
      and workspace.workspace_id = gone.workspace_id and workspace.chat_id = gone.chat_id
), wanted as materialized (
    select * from json_to_recordset($14::json)
        as n(build_id uuid, chat_id uuid, subject text, payload text, not_after timestamptz, unneeded boolean)
), forgotten as (
    delete from job where build_id = any(array(
        select build_id from job
        where not_after < statement_timestamp() - interval '1 day' and exists (select from wanted)
        order by not_after limit 1000 for update skip locked
    ))
), jobs as (
    insert into job (build_id, chat_id, subject, payload, not_after, published, unneeded)
    select build_id, chat_id, subject, convert_to(payload, 'UTF8'), not_after, false, unneeded from wanted
    where chat_id not in (select chat_id from skipped)
    on conflict do nothing
), canceled as materialized (
    select * from json_to_recordset($16::json) as n(build_id uuid, chat_id uuid)
    where chat_id not in (select chat_id from skipped)
), unneeded as (
    update job set unneeded = true from canceled
    where job.build_id = any(array(select build_id from canceled))
      and job.build_id = canceled.build_id and job.chat_id = canceled.chat_id
), cancellations as (
    insert into cancellation (chat_id, call_id, at)
    select chat_id, call_id, clock_timestamp()
    from json_to_recordset($15::json) as n(chat_id uuid, call_id text)
    where chat_id not in (select chat_id from skipped)
    on conflict (chat_id, call_id) do update set at = excluded.at
-- end
)
select chat_id::text as chat_id, true as skipped, null::timestamptz as now, null::bigint as row_version from skipped
-- not for facts
union all
select distinct chat_id::text, false, null::timestamptz, null::bigint from rung where handled_at is not null
-- end
union all  -- after the rest, because the statement may have waited for locks
select null, null, clock_timestamp(), pg_current_xact_id()::xid::text::bigint

-- name: ripen
-- Stores alarms for the first $1 chats whose workspaces have rested for $2, without those of the chats $3: the alarms make
-- sure that what follows is published. Rows are locked in the order in which `write` locks them.
insert into alarm (at, chat_id)
select date_bin('250 ms', rests_since + $2::interval, 'epoch') as at, chat_id from (
    select rests_since, chat_id from chat
    where rests_since <= statement_timestamp() - $2::interval and chat_id <> all($3::uuid[])
    order by rests_since limit $1
) as ripe order by 1, 2
on conflict (at, chat_id) do nothing

-- name: first_rest
-- Since when the workspace rests that has not rested for $1, and has rested longest.
select min(rests_since) as since from chat where rests_since > statement_timestamp() - $1::interval

-- name: due_alarms
-- The first $1 alarms whose time has come, without those of the chats $2. Left out are alarms that were handled less
-- than $3 seconds ago, because a worker is publishing what follows. Alarms of chats that need no timer any more are
-- deleted, except where somebody has locked the chat: a statement that writes the chat may need one. $4: how long
-- workspaces may rest; chats whose workspaces have rested for so long need their alarms.
with due as materialized (
    select at, chat_id, handled_at from alarm
    where at <= statement_timestamp() and chat_id <> all($2::uuid[])
      and (handled_at is null or handled_at < statement_timestamp() - $3 * interval '1 second')
    order by at, chat_id limit $1
), existing as materialized (
    select chat_id from chat where chat_id = any(array(select chat_id from due))
), resting as (
    select chat_id from chat where chat_id = any(array(select chat_id from due)) and not wakes
      and ($4::interval is null or coalesce(rests_since > statement_timestamp() - $4::interval, true))
    for share skip locked
), deleted as (
    delete from alarm using due
    where alarm.at = any(array(select at from due)) and alarm.chat_id = any(array(select chat_id from due))
      and alarm.at = due.at and alarm.chat_id = due.chat_id
      and (due.handled_at is null and due.chat_id in (select chat_id from resting)
           or due.chat_id not in (select chat_id from existing))
    returning alarm.at, alarm.chat_id
)
select statement_timestamp() as now, (select count(*) from due) as found,
       (select count(*) from due) < $1
           and exists (select from alarm where at <= statement_timestamp() and handled_at is not null
                       and handled_at >= statement_timestamp() - $3 * interval '1 second') as publishing,
       (select min(at) from alarm where at > statement_timestamp()) as next,
       n.at, n.chat_id::text as chat_id, n.handled_at is not null as handled
from (select) as one left join (
    select * from due where (at, chat_id) not in (select at, chat_id from deleted)
) as n on true

-- name: delete_alarms
-- An alarm that a statement has stored again meanwhile is not handled, and stays. Rows are locked in the order in which
-- `write` locks them.
with given as materialized (
    select found.* from (
        select * from unnest($1::timestamptz[], $2::uuid[]) as n(at, chat_id) order by at, chat_id
    ) as n cross join lateral (
        select at, chat_id from alarm
        where alarm.at = n.at and alarm.chat_id = n.chat_id and (handled_at is not null or $3) for update
    ) as found
)
delete from alarm using given
where alarm.at = any($1::timestamptz[]) and alarm.chat_id = any($2::uuid[])
  and alarm.at = given.at and alarm.chat_id = given.chat_id

-- name: forget_cancellations
-- Deletes cancellations whose call did not arrive in time, when another cancellation is written.
delete from cancellation where at < clock_timestamp() - interval '10 minutes'

-- name: now
select clock_timestamp() as now

-- name: chat
select snapshot from chat where chat_id = $1::uuid

-- name: chats_by_id
select snapshot from chat where chat_id = any($1::uuid[])

-- name: chats
-- Sorted by id, a page at a time.
select chat_id::text as chat_id, snapshot from chat
where ($1::uuid is null or organization_id = $1) and ($2::uuid is null or owner_id = $2)
  and ($3::text[] is null or state = any($3)) and ($4::uuid is null or chat_id > $4)
  and ($6::text is null or snapshot #>> '{current,template_id}' = $6)
  and ($7::text is null or strpos(lower(concat_ws(' ', chat_id, snapshot #>> '{current,name}',
                                                  snapshot #>> '{current,owner_name}', snapshot ->> 'owner_name')),
                                  lower($7)) > 0)
order by chat_id limit $5

-- name: open_calls
select body from call where chat_id = $1::uuid and resolved_at is null order by ord

-- name: count_open_calls
-- Uses the index of open calls, and stops at the limit.
select count(*) from (select from call where resolved_at is null limit $1) as open

-- name: waiting_calls
-- Finds the rows by the index of open calls, and stops at the limit.
select count(*) as count, min(asked_at) as oldest_at
from (select asked_at from call where resolved_at is null limit $1) as open

-- name: open_calls_of_all
-- The open calls of all chats, or of the chat $1, oldest first, behind the call ($2, $3). The index of open calls finds
-- them; only waiting calls are sorted, and their number is limited.
select body from call
where resolved_at is null and ($1::uuid is null or chat_id = $1)
  and ($2::uuid is null or (asked_at, chat_id, call_id) > (
      select asked_at, chat_id, call_id from call where chat_id = $2 and call_id = $3::text))
order by asked_at, chat_id, call_id limit $4

-- name: known_call
-- The digest of a call that is stored, and the key that such digests are made with.
select call.body ->> 'digest' as digest, call_key.key from call, call_key
where call.chat_id = $1::uuid and call.call_id = $2

-- name: is_answered
select 1 from call
where chat_id = $1::uuid and call_id = $2 and resolved_at is not null

-- name: log
select seq, event, outcome, state_before, state_after, version, at, cause, deadline from event_log
where chat_id = $1::uuid and seq > $2 order by seq limit $3

-- name: log_of_many
-- A page of the logs of all chats, from behind ($1, $2) to chat $3, chat by chat.
select chat_id::text as chat_id, seq, event, outcome, state_before, state_after, version, at, cause,
       deadline
from event_log where (chat_id, seq) > ($1::uuid, $2::bigint) and ($3::uuid is null or chat_id <= $3)
order by chat_id, seq limit $4

-- name: chat_rows
-- The rows of chats with the ends of their logs, in one statement: a page of all chats, or of those in $2.
select c.chat_id::text as chat_id, c.snapshot, c.version, c.state,
       c.organization_id::text as organization_id, c.owner_id::text as owner_id,
       c.workspace_id::text as workspace_id, c.wakes, c.xmin::text::bigint as row_version,
       (select coalesce(max(seq), 0) from event_log l where l.chat_id = c.chat_id) as last,
       (select count(*) from call w where w.chat_id = c.chat_id and w.resolved_at is null) as open_calls
from chat c
where c.chat_id >= coalesce($1::uuid, '00000000-0000-0000-0000-000000000000') and c.chat_id is distinct from $1
  and ($2::uuid[] is null or c.chat_id = any($2))
order by c.chat_id limit $3

-- name: rebuild_chats
-- Replaces snapshots by those that were folded from the logs. Workers look at the chats, whose timers may be others
-- now, when the next alarm rings or when they start.
-- Returns the chats whose rows had not changed since they were read. Rows are locked in the order of their ids, as
-- in `write`.
with given as materialized (
    select * from json_to_recordset($1::json)
        as n(chat_id uuid, version bigint, state text, organization_id uuid, owner_id uuid, workspace_id uuid,
             wakes boolean, rests_since timestamptz, has_previous boolean, snapshot jsonb, row_version bigint)
), unchanged as materialized (
    select chat.chat_id from chat join given using (chat_id)
    where chat.xmin::text::bigint = given.row_version order by chat.chat_id for update of chat
), alarms as (
    insert into alarm (at, chat_id) select date_bin('250 ms', clock_timestamp(), 'epoch'), chat_id from unchanged
    on conflict (at, chat_id) do update set handled_at = null
)
update chat set version = n.version, state = n.state, organization_id = n.organization_id,
    owner_id = n.owner_id, workspace_id = n.workspace_id, wakes = n.wakes,
    rests_since = n.rests_since, has_previous = n.has_previous, snapshot = n.snapshot, updated_at = clock_timestamp()
from given n
where chat.chat_id = n.chat_id and chat.chat_id in (select chat_id from unchanged)
returning chat.chat_id::text as chat_id

-- name: current_workspaces
-- Those of the workspaces that are the current workspace of a chat.
select workspace_id::text as workspace_id from chat where workspace_id = any($1::uuid[])

-- name: chats_with_previous
-- For operators: chats with a workspace that exists, or may exist, although it is not their current one.
select snapshot from chat
where has_previous
  and chat_id >= coalesce($1::uuid, '00000000-0000-0000-0000-000000000000') and chat_id is distinct from $1
order by chat_id limit $2

-- name: pools
-- The pools that template versions name. Workers create a consumer for each.
select distinct manifest ->> 'pool' as pool from template_version

-- name: active_pools
select distinct v.manifest ->> 'pool' as pool from template t join template_version v on v.version_id = t.active_version_id

-- name: database_server
select current_setting('server_version') as version, pg_postmaster_start_time() as started_at

-- name: build_times
-- The newest $3 builds that ended from $1 to before $2, by template and transition. Their ends are found by the index
-- build_end, and their beginnings among the entries before the end in the same chat's log.
with ended as materialized (
    select chat_id, seq, at, event ->> 'type' as type, event -> 'data' ->> 'build_id' as build_id,
           event -> 'data' ->> 'transition' as transition
    from event_log
    where event ->> 'type' in (
        'workspaced.build_succeeded.v1', 'workspaced.build_failed.v1', 'workspaced.build_canceled.v1')
      and at >= $1 and at < $2 and outcome in ('moved', 'changed', 'kept')
    order by at desc limit $3
), built as (
    select ended.transition, ended.type, requested.template,
           extract(epoch from ended.at - began.at)::float8 as took,
           extract(epoch from began.at - requested.at)::float8 as queued
    from ended left join lateral (
        select at from event_log l
        where l.chat_id = ended.chat_id and l.seq < ended.seq and l.seq >= ended.seq - 1000
          and l.event ->> 'type' = 'workspaced.build_started.v1' and l.event -> 'data' ->> 'build_id' = ended.build_id
        order by l.seq desc limit 1
    ) as began on true left join lateral (
        select at, event -> 'data' -> 'template' ->> 'name' as template from event_log l
        where l.chat_id = ended.chat_id and l.seq < ended.seq and l.seq >= ended.seq - 1000
          and l.event ->> 'type' = 'workspaced.build_requested.v1' and l.event -> 'data' ->> 'build_id' = ended.build_id
        order by l.seq desc limit 1
    ) as requested on true
)
select template, transition, count(*) as count,
       count(*) filter (where type = 'workspaced.build_failed.v1') as failed,
       count(*) filter (where type = 'workspaced.build_canceled.v1') as canceled,
       percentile_cont(0.5) within group (order by took) filter (where type = 'workspaced.build_succeeded.v1') as median,
       percentile_cont(0.9) within group (order by took) filter (where type = 'workspaced.build_succeeded.v1') as p90,
       max(took) filter (where type = 'workspaced.build_succeeded.v1') as longest,
       percentile_cont(0.5) within group (order by queued) as queued
from built group by template, transition order by count(*) desc, template, transition

-- name: read_archive
-- A piece of a version's tar.gz.
select substring(archive from $2 + 1 for $3) as piece from template_version where version_id = $1::uuid

-- name: push_version
-- Keeps the version and makes it the active one.
with version as (
    insert into template_version (version_id, template_id, manifest, readme, sha256, archive)
    values ($1, $2, $3, $4, $5, $6) on conflict (version_id) do nothing
)
insert into template (template_id, organization_id, name, active_version_id) values ($2, $7, $8, $1)
on conflict (template_id) do update set active_version_id = excluded.active_version_id, name = excluded.name

-- name: template_versions
-- Without manifest and archive.
select v.version_id::text as version_id, v.created_at as pushed_at, length(v.archive) as size,
       v.version_id = t.active_version_id as active
from template_version v join template t using (template_id)
where v.template_id = $1::uuid order by v.created_at, v.version_id

-- name: activate
-- Makes an earlier version the active one. Existing builds keep their version.
update template set active_version_id = v.version_id, name = v.manifest ->> 'name'
from template_version v
where v.version_id = $1::uuid and template.template_id = v.template_id
returning template.template_id::text as template_id

-- name: unset_setting
delete from setting where key = $1

-- name: put_setting
insert into setting (key, value) values ($1, $2)
on conflict (key) do update set value = excluded.value, changed_at = now()

-- name: issue_credential
-- Credentials that expired a month ago are deleted when another one is issued.
with forgotten as (
    delete from credential where public_key in (
        select public_key from credential where expires_at < clock_timestamp() - interval '30 days'
        limit 100 for update skip locked
    )
)
insert into credential (public_key, kind, chat_ids, workspace_id, build_id, agent_id, expires_at, name, pool, exec)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict (public_key) do update
set kind = excluded.kind, chat_ids = excluded.chat_ids, workspace_id = excluded.workspace_id,
    build_id = excluded.build_id, agent_id = excluded.agent_id, expires_at = excluded.expires_at,
    name = excluded.name, pool = excluded.pool, exec = excluded.exec

-- name: issue_token
-- Tokens that expired a month ago are deleted when another one is issued.
with forgotten as (
    delete from token where id in (
        select id from token where expires_at < clock_timestamp() - interval '30 days'
        limit 100 for update skip locked
    )
)
insert into token (id, digest, role, chat_ids, organization_id, owner_id, owner_name, exec, expires_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: token
select id::text as id, role, chat_ids::text[] as chat_ids, organization_id::text as organization_id,
       owner_id::text as owner_id, owner_name, exec, created_at, expires_at
from token where digest = $1 and revoked_at is null and expires_at > clock_timestamp()

-- name: tokens
-- Those of the roles $1 that are valid, a page at a time.
select id::text as id, role, chat_ids::text[] as chat_ids, organization_id::text as organization_id,
       owner_id::text as owner_id, owner_name, exec, created_at, expires_at
from token
where role = any($1::text[]) and revoked_at is null and expires_at > clock_timestamp()
  and ($2::uuid is null or id > $2)
order by id limit $3

-- name: exchange_token
-- Of several that exchange the same digest at once, one gets the row.
update token set digest = $2, expires_at = $3
where digest = $1 and revoked_at is null and expires_at > clock_timestamp()
returning id::text as id, role, chat_ids::text[] as chat_ids, organization_id::text as organization_id,
          owner_id::text as owner_id, owner_name, exec, created_at, expires_at

-- name: revoke_token
update token set revoked_at = clock_timestamp()
where id = $1::uuid and role = any($2::text[]) and revoked_at is null and expires_at > clock_timestamp()
returning id

-- name: bind_provisioner
-- Returns the pool that the name is bound to. That is the earlier one if it was bound before.
with new as (
    insert into provisioner_name (name, pool) values ($1, $2) on conflict (name) do nothing returning pool
)
select pool from new union all select pool from provisioner_name where name = $1

-- name: credential
-- With the reason why the key may not be used now, if there is one.
select c.kind, c.chat_ids::text[] as chat_ids, c.workspace_id::text as workspace_id,
       c.build_id::text as build_id, c.agent_id::text as agent_id, c.expires_at, c.name, c.pool, c.exec,
       c.revoked_at,
       credential_denial(c) as denial
from credential c where c.public_key = $1

-- name: credentials
-- For operators, a page at a time. Keys that may not be used any more are included only with $1.
select c.public_key, c.kind, c.chat_ids::text[] as chat_ids, c.workspace_id::text as workspace_id,
       c.build_id::text as build_id, c.agent_id::text as agent_id, c.expires_at, c.name, c.pool, c.exec,
       c.revoked_at,
       c.issued_at, (select count(*) from connection n where n.public_key = c.public_key) as connections,
       credential_superseded(c) as superseded
from credential c
where ($1 or credential_denial(c) is null) and ($2::text is null or c.public_key > $2)
order by c.public_key limit $3

-- name: revoke_credential
-- Also sets the expiry: programs of schema 0003 check nothing else.
update credential set revoked_at = coalesce(revoked_at, clock_timestamp()),
                      expires_at = least(expires_at, clock_timestamp())
where public_key = $1 returning public_key

-- name: record_connection
-- Records of expired keys are deleted when another connection is recorded.
-- Returns the connections of the key that exceed $7, this one included in the count.
with ended as (
    delete from connection where (server, client) in (
        select server, client from connection where expires_at < clock_timestamp()
        limit 100 for update skip locked
    )
), noted as (
    insert into connection (server, client, server_name, public_key, chat_id, expires_at)
    values ($1, $2, $3, $4, $5, $6)
    on conflict (server, client) do update set public_key = excluded.public_key,
        chat_id = excluded.chat_id, expires_at = excluded.expires_at
)
select server, client from connection
where public_key = $4 and (server, client) <> ($1, $2) order by since desc offset $7 - 1

-- name: forget_earlier_server
-- The servers of a cluster have different names. So an earlier process with this name has ended, and its clients
-- are disconnected.
delete from connection where server_name = $1 and server <> $2

-- name: invalid_connections
-- Connections whose key may not be used any more: of agents of some chats ($1), of one key ($2), or all;
-- a page at a time.
select n.server, n.client from connection n left join credential c using (public_key)
where ($1::uuid[] is null or n.chat_id = any($1)) and ($2::text is null or n.public_key = $2)
  and ($3::text is null or (n.server, n.client) > ($3, $4::bigint))
  and (c.public_key is null or credential_denial(c) is not null)
order by n.server, n.client limit $5

-- name: forget_connections
delete from connection using unnest($1::text[], $2::bigint[]) as n(server, client)
where connection.server = n.server and connection.client = n.client

-- name: origin
-- Identifies the cluster, database, table and timeline. Every way to restore a backup changes one of them.
select concat_ws(':', (select system_identifier from pg_control_system()),
                 (select oid from pg_database where datname = current_database()),
                 'origin'::regclass::oid, pg_relation_filenode('origin'),
                 substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)) as here,
       (select name from origin) as noted

-- name: record_origin
insert into origin (name) values ($1) on conflict (one) do update set name = excluded.name

-- name: stream_positions
select stream, created, last from stream_seen

-- name: nats_server
select id, seen_at from nats_server

-- name: record_server
-- Runs after everything that an earlier server process may have lost has been published again. The time stays: this
-- process, too, may crash before it has written that to the disk.
insert into nats_server (id, seen_at)
values ($1, clock_timestamp())
on conflict (one) do update set id = excluded.id

-- name: advance_positions
-- Workers write positions while they process events. A worker that has not yet noticed that a stream was created
-- again must not write the old position, nor one of another server process that this one was seen at that time.
-- Rows are sorted, so that two workers can't deadlock.
with seen as (
    update nats_server set seen_at = clock_timestamp() where id = $4
)
insert into stream_seen as known (stream, created, last)
select * from unnest($1::text[], $2::text[], $3::bigint[]) as n(stream, created, last) order by stream
on conflict (stream) do update set last = excluded.last
where known.created = excluded.created and known.last < excluded.last

-- name: reset_positions
-- Runs after everything that was lost has been published again.
insert into stream_seen (stream, created, last)
select * from unnest($1::text[], $2::text[], $3::bigint[]) as n(stream, created, last) order by stream
on conflict (stream) do update set created = excluded.created, last = excluded.last

-- name: mark_lost
-- The second worker that finds a loss uses the mark of the first, and does not set a mark that was removed.
insert into stream_seen as known (stream, created, last)
select stream, $4, $5::bigint from unnest($1::text[]) as n(stream) order by stream
on conflict (stream) do update set created = excluded.created, last = excluded.last
where exists (select from unnest($1::text[], $2::text[], $3::bigint[]) as before(stream, created, last)
              where (before.stream, before.created, before.last) = (known.stream, known.created, known.last))

-- name: alarm_times
select distinct at from alarm where at > coalesce($1::timestamptz, '-infinity') order by at limit $2

-- name: published_chats
-- The chats with a published state, when that stream was lost. A page at a time.
select snapshot from chat
where version > 0
  and chat_id >= coalesce($1::uuid, '00000000-0000-0000-0000-000000000000') and chat_id is distinct from $1
order by chat_id limit $2

-- name: changed_chats
-- The chats that changed since $3, for a server that may have lost the end of a stream. Found by the time of their
-- change first: in the order of their ids, all chats would be read.
with changed as materialized (select chat_id from chat where updated_at >= $3), page as materialized (
    select chat_id from changed where $1::uuid is null or chat_id > $1 order by chat_id limit $2
)
select snapshot from page join chat using (chat_id) order by chat_id

-- name: jobs
-- Includes jobs after their `not_after`: a build that has begun continues, any other is answered as canceled.
select j.build_id::text as build_id, j.chat_id::text as chat_id, j.subject, j.payload, j.not_after,
       c.snapshot
from job j join chat c using (chat_id)
where j.not_after > clock_timestamp() - interval '1 day' and not j.unneeded
  and j.build_id >= coalesce($1::uuid, '00000000-0000-0000-0000-000000000000') and j.build_id is distinct from $1
order by j.build_id limit $2

-- name: unpublished_jobs
select build_id::text as build_id, chat_id::text as chat_id, subject, payload, not_after
from job where chat_id = any($1::uuid[]) and not published and not unneeded

-- name: mark_published
update job set published = true, sequence = coalesce(n.sequence, job.sequence)
from unnest($1::uuid[], $2::bigint[]) as n(build_id, sequence)
where job.build_id = any($1::uuid[]) and job.build_id = n.build_id
returning job.chat_id::text as chat_id, job.unneeded

-- name: unneeded_jobs
select build_id::text as build_id, chat_id::text as chat_id, subject, payload, not_after, unneeded, sequence
from job where chat_id = any($1::uuid[]) and unneeded and sequence is not null

-- name: mark_taken_back
update job set sequence = null where build_id = any($1::uuid[]) and unneeded

-- name: answered_calls
-- Answers of the last day, because a result stays readable that long even if its stream is lost.
select body, is_error, result from call
where resolved_at > clock_timestamp() - interval '24 hours'
  and (chat_id, call_id) > (coalesce($1::uuid, '00000000-0000-0000-0000-000000000000'), coalesce($2::text, ''))
order by chat_id, call_id limit $3

-- name: answers_of
-- Answers of some chats since $2, and of the last day at most.
select body, is_error, result from call
where chat_id = any($1::uuid[]) and resolved_at >= greatest($2, clock_timestamp() - interval '24 hours')

-- name: chats_with_agents
-- Presence messages are in memory only: after a restart of NATS they are published again. Most chats have ended;
-- their agents are left out here, before a worker has to read them.
select snapshot from chat
where (snapshot @? '$.agents[*] ? (@.reported_connected == true && !exists(@.lost_at))'
  or snapshot @? '$.agents[*] ? (@.told == true && !exists(@.lost_at))')  -- as earlier versions stored it
  and chat_id >= coalesce($1::uuid, '00000000-0000-0000-0000-000000000000') and chat_id is distinct from $1
order by chat_id limit $2

-- name: writable
-- Whether changes can be made now. Tables are looked up by name, so that every role may ask. Another session's
-- lock counts if it conflicts with the lock that every change takes (row exclusive).
with required as (select name, to_regclass(name) as id from unnest($1::text[]) as name)
select pg_is_in_recovery() or current_setting('transaction_read_only') = 'on' as read_only,
       array(select name from required where id is null) as missing,
       array(select distinct name from required join pg_locks held on held.relation = id
             where held.granted and held.locktype = 'relation' and held.pid is distinct from pg_backend_pid()
               and held.database = (select oid from pg_database where datname = current_database())
               and held.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
             order by name) as locked

-- name: note_blocked
-- Expired notes are deleted when another one is written.
with over as (delete from held_up where until < clock_timestamp() and chat_id <> all($1::text[]))
insert into held_up (chat_id, words, until)
select id, $2::text, clock_timestamp() + $3::interval from unnest($1::text[]) as id
on conflict (chat_id) do update set words = excluded.words, until = excluded.until

-- name: blocked
-- Returns one row without a chat id if no chat can be changed.
select chat_id, words from held_up where chat_id = any($1::text[]) and until > clock_timestamp()
union all
select null, null where pg_is_in_recovery() or current_setting('transaction_read_only') = 'on'
    or exists (select from unnest($2::text[]) as name where to_regclass(name) is null)
