-- Where the vectors of a collection stand once more, if another engine finds what is near; never a password.
ALTER TABLE embedding_studio.collections ADD COLUMN filled jsonb;

-- What such an engine is to be told yet: that an object came, changed or went; a row goes once it has been. What is told
-- is what the object is by then. parts: so many vectors it has there if it is gone. error: why the engine refused it.
CREATE TABLE embedding_studio.outbox (
    change bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection_id bigint NOT NULL REFERENCES embedding_studio.collections ON DELETE CASCADE,
    object_no bigint NOT NULL,
    parts integer NOT NULL,
    since double precision NOT NULL DEFAULT embedding_studio.seconds(),
    attempts integer NOT NULL DEFAULT 0,
    not_before double precision NOT NULL DEFAULT 0,
    error text
);
CREATE INDEX outbox_of_collection ON embedding_studio.outbox (collection_id, change);
