-- Decides in one place whether an issued key may be used. Safe with programs of 0005: they do not call these.

create function credential_superseded(c credential) returns boolean language sql as $$
    select c.kind = 'agent' and not exists (
        select from chat
        where chat.chat_id = c.chat_ids[1] and c.build_id::text = coalesce(chat.snapshot #>> '{current,build,id}', chat.snapshot #>> '{build,id}'))
$$;
comment on function credential_superseded is 'An agent''s key: its chat has another build by now.';

create function credential_denial(c credential) returns text language sql as $$
    select case when c.revoked_at is not null then 'revoked'
                when c.expires_at <= clock_timestamp() then 'expired'
                when credential_superseded(c) then 'superseded' end
$$;
comment on function credential_denial is 'Why a key may not be used now; null while it is valid.';
