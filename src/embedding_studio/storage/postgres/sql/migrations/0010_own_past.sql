-- How much a user's own past counts, as learnt from the log; absent: in full.
ALTER TABLE embedding_studio.collections ADD COLUMN own_past jsonb;
