-- Who owns a partition, where an organization lives, and the state that shortens a start.

CREATE TABLE ledger.owners (
    partition integer PRIMARY KEY REFERENCES ledger.partitions,
    address text NOT NULL,
    incarnation text NOT NULL,
    pid integer NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);

-- An organization without a row lives in partition 0.
CREATE TABLE ledger.directory (
    organization_id text COLLATE "C" PRIMARY KEY,
    partition integer NOT NULL REFERENCES ledger.partitions
);

CREATE TABLE ledger.checkpoints (
    partition integer PRIMARY KEY REFERENCES ledger.partitions,
    through bigint NOT NULL
);

CREATE PROCEDURE ledger.create_state_rows(new_partition integer) LANGUAGE plpgsql AS $procedure$
BEGIN
EXECUTE replace($template$
CREATE TABLE ledger.state_rows_p{N} (
    subject text COLLATE "C" PRIMARY KEY,
    resident boolean NOT NULL,
    data bytea NOT NULL
) WITH (
    -- Hot subjects are rewritten every second: room for heap-only updates, and an eager vacuum.
    fillfactor = 60,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);
$template$, '{N}', new_partition::text);
END
$procedure$;

CALL ledger.create_state_rows(0);
