-- Creates the database and the roles of workspaced on your own PostgreSQL server, 17 or later. Run it as a superuser; you may repeat it:
--   psql -X -v ON_ERROR_STOP=1 -f deploy/postgres/roles.sql postgres
select 'create database workspaced'
where not exists (select from pg_database where datname = 'workspaced') \gexec
\connect workspaced
-- The embedded server creates its roles from the same file.
\ir ../../statemachine/store/roles.sql
