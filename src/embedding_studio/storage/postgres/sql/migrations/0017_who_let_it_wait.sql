-- By which key an event came that waits for its session: no key may take the places of all.
ALTER TABLE embedding_studio.waiting_events ADD COLUMN sender text COLLATE "C" NOT NULL DEFAULT '';
