-- name: insert
INSERT INTO embedding_studio.api_keys
    (key_id, secret_hash, name, scopes, collections, requires_user_token, created_at, expires_at, revoked_at, last_used_at)
VALUES (
    %(key_id)s, %(secret_hash)s, %(name)s, %(scopes)s, %(collections)s, %(requires_user_token)s, %(created_at)s,
    %(expires_at)s, %(revoked_at)s, %(last_used_at)s
)

-- name: told
SELECT
    key_id, secret_hash, name, scopes, collections, requires_user_token, created_at, expires_at, revoked_at, last_used_at
FROM embedding_studio.api_keys

-- name: list
{told} ORDER BY created_at, key_id

-- name: get
{told} WHERE key_id = %(key_id)s

-- name: lock
{told} WHERE key_id = %(key_id)s FOR UPDATE

-- name: has_any
SELECT EXISTS (SELECT FROM embedding_studio.api_keys)

-- name: expire
UPDATE embedding_studio.api_keys
SET expires_at = least(expires_at, %(at)s)
WHERE key_id = %(key_id)s

-- name: revoke
UPDATE embedding_studio.api_keys
SET revoked_at = least(revoked_at, %(at)s)
WHERE key_id = %(key_id)s

-- name: note_use
UPDATE embedding_studio.api_keys
SET last_used_at = greatest(last_used_at, %(at)s)
WHERE key_id = %(key_id)s
