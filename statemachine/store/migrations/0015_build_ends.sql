-- Operators ask how long builds took. The ends of builds are found by their time, without reading whole event logs.
-- Safe beside programs of earlier schemas.

create index build_end on event_log (at) where event ->> 'type' in (
    'workspaced.build_succeeded.v1', 'workspaced.build_failed.v1', 'workspaced.build_canceled.v1'
);
