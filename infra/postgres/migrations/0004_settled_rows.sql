-- Rows that no start reads have a table of their own: reservations that are settled grow for ever,
-- and a start reads the pages of the other table from the first to the last.

CREATE OR REPLACE PROCEDURE ledger.create_state_rows(new_partition integer) LANGUAGE plpgsql AS $procedure$
BEGIN
EXECUTE replace($template$
CREATE TABLE ledger.state_rows_p{N} (
    subject text COLLATE "C" PRIMARY KEY,
    data bytea NOT NULL
) WITH (
    -- Hot subjects are rewritten with every save: room for heap-only updates, and an eager vacuum.
    fillfactor = 60,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE ledger.state_rows_p{N}_settled (
    subject text COLLATE "C" PRIMARY KEY,
    data bytea NOT NULL
);
$template$, '{N}', new_partition::text);
END
$procedure$;

-- What was saved is in the log as well: the next start reads it there, once.
DO $do$
DECLARE
    existing integer;
BEGIN
    DELETE FROM ledger.checkpoints;
    FOR existing IN SELECT partition FROM ledger.partitions LOOP
        EXECUTE format('DROP TABLE ledger.state_rows_p%s', existing);
        CALL ledger.create_state_rows(existing);
    END LOOP;
END
$do$;
