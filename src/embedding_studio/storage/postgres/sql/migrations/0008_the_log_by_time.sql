-- The log is read from a time on.
CREATE INDEX sessions_by_time ON embedding_studio.sessions (created_at, session_id);
