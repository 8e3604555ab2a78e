-- A model behind an endpoint is named without its address, which may change, and may hold secrets. Content hashes hold
-- the name under which a text was embedded, so that stays with collections that had another.
ALTER TABLE embedding_studio.collections ADD COLUMN hashed_as text;
UPDATE embedding_studio.collections
SET hashed_as = embedder, embedder = regexp_replace(embedder, '@https?://.*$', '')
WHERE embedder LIKE 'openai:%' AND embedder ~ '@https?://';
