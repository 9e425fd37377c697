-- The rights of each service in the database, for the embedded server and for your own (deploy/postgres).
-- Each part can be run repeatedly.

-- name: roles
-- A superuser runs this part. A role can change its own settings, which PostgreSQL cannot prevent; this resets them.
-- Each connection sets its own timeouts. Those below limit a connection that does not.
do $$
declare
    role text;
begin
    foreach role in array array['workspaced_owner', 'workspaced_worker', 'workspaced_gateway', 'workspaced_operator']
    loop
        if not exists (select from pg_roles where rolname = role) then
            execute format('create role %I', role);
        end if;
        execute format('alter role %I login nosuperuser nocreatedb nocreaterole noreplication nobypassrls noinherit', role);
        execute format('alter role %I reset all', role);
        -- With this path, an object in another schema can't be used in place of a table of workspaced.
        execute format('alter role %I set search_path = public, pg_temp', role);
    end loop;
    foreach role in array array['workspaced_worker', 'workspaced_gateway']
    loop
        execute format('alter role %I set statement_timeout = %L', role, '15s');
        execute format('alter role %I set idle_in_transaction_session_timeout = %L', role, '15s');
    end loop;
    alter role workspaced_operator set idle_in_transaction_session_timeout = '1min';
end $$;

-- name: database
-- A superuser runs this part in the database. Tables that are older than the roles get the owner of today,
-- whoever owned them before.
do $$
declare
    here text := current_database();
    role text;
    found regclass;
begin
    execute format('alter database %I owner to workspaced_owner', here);
    execute format('revoke all on database %I from public', here);
    execute format('revoke all on database %I from workspaced_worker, workspaced_gateway, workspaced_operator', here);
    execute format('grant connect on database %I to workspaced_worker, workspaced_gateway, workspaced_operator', here);
    revoke create on schema public from public, workspaced_worker, workspaced_gateway, workspaced_operator;
    foreach role in array array['workspaced_owner', 'workspaced_worker', 'workspaced_gateway', 'workspaced_operator']
    loop
        execute format('alter role %I in database %I reset all', role, here);
    end loop;
    for found in
        select c.oid from pg_class c join pg_class ledger on ledger.relowner = c.relowner
        where ledger.oid = to_regclass('public.schema_migration')
          and ledger.relowner <> 'workspaced_owner'::regrole
          and c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
    loop
        execute format('alter table %s owner to workspaced_owner', found);
    end loop;
end $$;

-- name: grants
-- The owner of the tables runs this part after the migrations. A test fails if a table is not listed, or if no
-- statement of worker or gateway needs one of their rights. The operator reads everything, for backups.
-- Programs of the previous version keep running during an upgrade: a right that only they need is revoked in the
-- next version.
do $$
declare
    decided record;
    asked record;
begin
    execute format('grant usage on schema %I to workspaced_worker, workspaced_gateway, workspaced_operator',
                   current_schema());
    for decided in
        select * from (values
            -- table            worker                            gateway                                            operator
            ('chat',             'select, insert, update',         'select',                                          'select, update'),
            ('event_log',        'insert',                         'select',                                          'select'),
            ('event_identity',   'select, insert',                 '',                                                'select'),
            ('call',             'select, insert, update',         'select (chat_id, call_id, ord, body, asked_at, resolved_at)', 'select'),
            ('call_key',         'select',                         'select',                                          'select'),
            ('cancellation',     'select, insert, update, delete', '',                                                'select'),
            ('workspace',        'select, insert, update',         'select',                                          'select'),
            ('outbox',           'select, insert, delete',         '',                                                'select'),
            ('outbox_id_seq',    '',                               '',                                                'select'),
            ('alarm',            'select, insert, update, delete', '',                                                'select, insert, update'),
            ('job',              'select, insert, update, delete', '',                                                'select'),
            ('template',         'select',                         'select',                                          'select, insert, update'),
            ('template_version', 'select',                         'select',                                          'select, insert'),
            ('setting',          'select',                         'select',                                          'select, insert, update, delete'),
            ('credential',       'select',                         'select, insert, update, delete',                  'select'),
            ('token',            '',                               'select, insert, update, delete',                  'select'),
            ('connection',       'select, delete',                 'select, insert, update, delete',                  'select'),
            ('provisioner_name', 'select',                         'select, insert',                                  'select'),
            ('stream_seen',      'select, insert, update',         '',                                                'select'),
            ('nats_server',      'select, insert, update',         '',                                                'select'),
            ('origin',           'select, insert, update',         '',                                                'select, delete'),
            ('held_up',          'select, insert, update, delete', 'select',                                          'select'),
            ('schema_migration', 'select',                         'select',                                          'select')
        ) as decision(relation, worker, gateway, operator)
        where to_regclass(relation) is not null
    loop
        execute format('revoke all on %I from public, workspaced_worker, workspaced_gateway, workspaced_operator',
                       decided.relation);
        for asked in
            select * from (values
                ('workspaced_worker', decided.worker),
                ('workspaced_gateway', decided.gateway),
                ('workspaced_operator', decided.operator)
            ) as asked(role, rights)
            where rights <> ''
        loop
            execute format('grant %s on %I to %I', asked.rights, decided.relation, asked.role);
        end loop;
    end loop;
end $$;
