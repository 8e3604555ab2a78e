-- What was dated ahead is of now: sessions of a wrong clock would be the latest of their users for years.
UPDATE embedding_studio.sessions
SET created_at = extract(epoch FROM now())::bigint
WHERE created_at > extract(epoch FROM now());
UPDATE embedding_studio.session_events
SET created_at = extract(epoch FROM now())::bigint
WHERE created_at > extract(epoch FROM now());
