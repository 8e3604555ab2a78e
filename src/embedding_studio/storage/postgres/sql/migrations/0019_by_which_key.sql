-- By which key a session came, so that what a stolen one recorded can be let count no more; null: by none that is known.
ALTER TABLE embedding_studio.sessions ADD COLUMN sender text COLLATE "C";
