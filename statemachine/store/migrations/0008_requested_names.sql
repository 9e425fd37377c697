-- Two batches may give a name to workspaces of the same owner at the same time: the index rejects the second one. Names
-- that facts report are not in the index, because a workspace made elsewhere may have a name that is in use. Safe with
-- programs of 0007, which assign names under a lock and do not set the column.

alter table workspace add column requested boolean not null default false;
comment on column workspace.requested is 'Whether the rules chose the name, so that no other workspace of the owner has it.';
create unique index workspace_requested_name on workspace (owner_id, lower(name)) where requested and deleted_at is null;
