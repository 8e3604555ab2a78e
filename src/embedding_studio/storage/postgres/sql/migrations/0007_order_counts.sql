-- How many orders stand in each status, so that nobody has to count them: the sum over all rows. A statement that
-- changes orders adds to a row that nobody else has locked, and to a new one only where others have locked all there are.
-- So no writer waits for another, and there are no more rows than a few for each transaction that was open at the same
-- time as others: none need clearing up.
CREATE TABLE embedding_studio.order_counts (
    pending bigint NOT NULL,
    done bigint NOT NULL,
    failed bigint NOT NULL,
    refused bigint NOT NULL
) WITH (fillfactor = 50);

-- new_orders and old_orders are what a statement wrote and what stood there before (transition tables).
CREATE FUNCTION embedding_studio.count_orders() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    come embedding_studio.order_counts := (0, 0, 0, 0);
    gone embedding_studio.order_counts := (0, 0, 0, 0);
    chosen tid;
BEGIN
    IF TG_OP <> 'DELETE' THEN
        SELECT
            count(*) FILTER (WHERE status = 'pending'),
            count(*) FILTER (WHERE status = 'done'),
            count(*) FILTER (WHERE status = 'failed'),
            count(*) FILTER (WHERE status = 'refused')
        INTO come
        FROM new_orders;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        SELECT
            count(*) FILTER (WHERE status = 'pending'),
            count(*) FILTER (WHERE status = 'done'),
            count(*) FILTER (WHERE status = 'failed'),
            count(*) FILTER (WHERE status = 'refused')
        INTO gone
        FROM old_orders;
    END IF;
    IF come = gone THEN
        RETURN NULL;
    END IF;
    SELECT ctid INTO chosen FROM embedding_studio.order_counts LIMIT 1 FOR UPDATE SKIP LOCKED;
    -- A row that is locked keeps its place (ctid) until this transaction changes it.
    UPDATE embedding_studio.order_counts
    SET pending = pending + come.pending - gone.pending,
        done = done + come.done - gone.done,
        failed = failed + come.failed - gone.failed,
        refused = refused + come.refused - gone.refused
    WHERE ctid = chosen;
    IF NOT FOUND THEN
        INSERT INTO embedding_studio.order_counts
        VALUES (
            come.pending - gone.pending,
            come.done - gone.done,
            come.failed - gone.failed,
            come.refused - gone.refused
        );
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION embedding_studio.count_no_orders() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    DELETE FROM embedding_studio.order_counts;
    RETURN NULL;
END
$$;

-- They lock out whoever writes orders until what is there is counted.
CREATE TRIGGER orders_placed AFTER INSERT ON embedding_studio.sessions_for_improvement
    REFERENCING NEW TABLE AS new_orders
    FOR EACH STATEMENT EXECUTE FUNCTION embedding_studio.count_orders();
CREATE TRIGGER orders_changed AFTER UPDATE ON embedding_studio.sessions_for_improvement
    REFERENCING OLD TABLE AS old_orders NEW TABLE AS new_orders
    FOR EACH STATEMENT EXECUTE FUNCTION embedding_studio.count_orders();
CREATE TRIGGER orders_removed AFTER DELETE ON embedding_studio.sessions_for_improvement
    REFERENCING OLD TABLE AS old_orders
    FOR EACH STATEMENT EXECUTE FUNCTION embedding_studio.count_orders();
CREATE TRIGGER orders_truncated AFTER TRUNCATE ON embedding_studio.sessions_for_improvement
    FOR EACH STATEMENT EXECUTE FUNCTION embedding_studio.count_no_orders();

INSERT INTO embedding_studio.order_counts
SELECT
    count(*) FILTER (WHERE status = 'pending'),
    count(*) FILTER (WHERE status = 'done'),
    count(*) FILTER (WHERE status = 'failed'),
    count(*) FILTER (WHERE status = 'refused')
FROM embedding_studio.sessions_for_improvement;
