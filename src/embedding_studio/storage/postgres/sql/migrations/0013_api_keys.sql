-- What is kept of API keys: never the secret, only its SHA-256. Those that ended stay, for who asks what they were.
CREATE TABLE embedding_studio.api_keys (
    key_id text COLLATE "C" PRIMARY KEY,
    secret_hash bytea NOT NULL,
    name text NOT NULL,
    scopes text[] NOT NULL,
    collections text[] NOT NULL,
    requires_user_token boolean NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint,
    revoked_at bigint,
    last_used_at bigint
);
