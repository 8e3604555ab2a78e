-- The pages that a session showed after its first: request, time and what each showed for the first time
-- (domain/sessions, FurtherPage); null: none that is known.
ALTER TABLE embedding_studio.sessions ADD COLUMN pages jsonb;
