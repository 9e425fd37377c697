-- Database and roles of workspaced on a PostgreSQL of your own, 17 or later. By a superuser, as often as you like:
--   psql -X -v ON_ERROR_STOP=1 -f deploy/postgres/roles.sql postgres
select 'create database workspaced'
where not exists (select from pg_database where datname = 'workspaced') \gexec
\connect workspaced
-- The same file makes the roles of the embedded server.
\ir ../../statemachine/store/roles.sql
