-- The job of a build that was canceled before it began is deleted from its stream: by the sequence under which it was
-- published, which programs of 0012 do not record.

alter table job add column unneeded boolean not null default false, add column sequence bigint;
comment on column job.unneeded is 'The build was canceled before it began, so nobody needs the job.';
comment on column job.sequence is 'The sequence of the published job in its stream; null: not known, or deleted.';
create index job_unneeded on job (chat_id) where unneeded and sequence is not null;
