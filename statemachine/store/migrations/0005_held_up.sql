-- Why events of a chat are not taken now, for those who ask what holds the chat up. Whoever tries again notes it
-- again; what is over is removed with the next note.
create table held_up (
    chat_id text primary key,
    words text not null,
    until timestamptz not null
);
