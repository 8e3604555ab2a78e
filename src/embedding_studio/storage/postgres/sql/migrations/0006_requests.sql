-- What a recorded search asked for beside its query (domain/sessions, SearchRequest).
ALTER TABLE embedding_studio.sessions ADD COLUMN request jsonb;
