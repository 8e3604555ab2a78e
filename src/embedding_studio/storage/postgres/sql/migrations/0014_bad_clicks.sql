-- Events that came before their session, and are joined to it when it is recorded, or go at their age.
CREATE TABLE embedding_studio.waiting_events (
    session_id text COLLATE "C",
    event_id text COLLATE "C",
    object_id text COLLATE "C" NOT NULL,
    event_type text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    meta jsonb,
    arrived_at double precision NOT NULL DEFAULT embedding_studio.seconds(),
    PRIMARY KEY (session_id, event_id)
);
CREATE INDEX waiting_events_by_age ON embedding_studio.waiting_events (arrived_at);

-- Whether events wait for a session; none begin to until the commit. It is asked within the statement that records the
-- session, and sees what was committed after that began, for each query of a volatile function has a snapshot of its own.
CREATE FUNCTION embedding_studio.is_awaited(lock_class integer, given text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(lock_class, hashtext(given) & 63);
    RETURN EXISTS (SELECT FROM embedding_studio.waiting_events WHERE session_id = given);
END
$$;

-- Of whose sessions the last fold found that they are a robot's. It is part of their state in a collection, as what was
-- learnt of others is.
CREATE TABLE embedding_studio.quarantined (
    collection_id bigint REFERENCES embedding_studio.collections ON DELETE CASCADE,
    user_id text COLLATE "C",
    reason text NOT NULL,
    since bigint NOT NULL,
    PRIMARY KEY (user_id, collection_id)
);

-- What a person decided of a user; it is part of the log. Who is released is judged by what comes after decided_at.
CREATE TABLE embedding_studio.quarantine_decisions (
    user_id text COLLATE "C" PRIMARY KEY,
    is_quarantined boolean NOT NULL,
    reason text NOT NULL,
    decided_at bigint NOT NULL
);
