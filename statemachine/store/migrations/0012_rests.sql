-- Workspaces that have rested for as long as a setting says are deleted. No alarm is stored for them: workers find the
-- chats that have rested longest by an index, and set one alarm for the first of them.

alter table chat add column rests_since timestamptz;
comment on column chat.rests_since is 'Since when its workspace, or the replaced one that has rested longest, rests.';
alter table chat add column has_previous boolean not null default false;
comment on column chat.has_previous is 'A workspace exists, or may exist, that the chat had before, or that facts mentioned.';

update chat set
    has_previous = jsonb_path_exists(snapshot, '$.previous[*] ? (!exists(@.deleted))')
        or jsonb_path_exists(snapshot, '$.former[*] ? (!exists(@.deleted))'),
    rests_since = least(
        case when state in ('stopped', 'build_failed', 'build_canceled')
             then coalesce((snapshot #>> '{current,build,ended_at}')::timestamptz, updated_at) end,
        (select min((p #>> '{build,ended_at}')::timestamptz)
         from jsonb_array_elements(coalesce(snapshot -> 'previous', snapshot -> 'former', '[]')) as p
         where not p ? 'deleted' and not p ? 'orphaned_at'))
where state in ('stopped', 'build_failed', 'build_canceled') or snapshot ? 'previous' or snapshot ? 'former';

create index chat_that_rests on chat (rests_since) where rests_since is not null;
create index chat_with_previous on chat (chat_id) where has_previous;
