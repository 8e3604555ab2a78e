-- Where the objects of a collection are, if another system keeps them; never a password.
ALTER TABLE embedding_studio.collections ADD COLUMN attached jsonb;
