-- The log: events, claims, groups and data keys, and the one function that writes them.

CREATE TABLE ledger.identity (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    log_id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Raised by a restore or a lossy fail-over: edges and cursors of another epoch start empty.
    epoch integer NOT NULL DEFAULT 1
);
INSERT INTO ledger.identity DEFAULT VALUES;

-- One key per subject encrypts its personal fields; without the row they are gone for ever.
CREATE TABLE ledger.data_keys (
    subject text COLLATE "C" PRIMARY KEY,
    material bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ledger.partitions (
    partition integer PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION ledger.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    RAISE EXCEPTION 'the log is append-only' USING ERRCODE = 'KL005';
END
$body$;

-- A partition has its own tables and its own append function: the library's recorder reads
-- `WHERE notification_id > n` and knows no partition, and a partition can move to another server.
CREATE PROCEDURE ledger.create_partition(new_partition integer) LANGUAGE plpgsql AS $procedure$
BEGIN
INSERT INTO ledger.partitions (partition) VALUES (new_partition);
EXECUTE replace($template$

-- The columns are those of the eventsourcing library's recorder; the position is assigned by the
-- append function, not by a sequence: a sequence leaves holes when a transaction rolls back.
CREATE TABLE ledger.events_p{N} (
    notification_id bigint PRIMARY KEY,
    originator_version bigint NOT NULL,
    originator_id text COLLATE "C" NOT NULL,
    topic text COLLATE "C" NOT NULL,
    state bytea NOT NULL,
    UNIQUE (originator_id, originator_version)
) WITH (
    -- Nothing is updated: vacuum only has to freeze, statistics only have to exist.
    autovacuum_vacuum_insert_threshold = 1000000,
    autovacuum_analyze_threshold = 10000
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger.events_p{N}
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();

CREATE TABLE ledger.claims_p{N} (
    digest uuid PRIMARY KEY,
    position bigint NOT NULL,
    expires_at timestamptz,
    answer bytea
);
CREATE INDEX claims_p{N}_expires_at ON ledger.claims_p{N} (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE ledger.groups_p{N} (
    group_id uuid PRIMARY KEY,
    head bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX groups_p{N}_at ON ledger.groups_p{N} USING brin (at);

-- KL001 the head moved, KL002 a claim is taken, KL003 another session owns the partition.
CREATE FUNCTION ledger.append_p{N}(
    expected_head bigint,
    new_group uuid,
    decided_at timestamptz,
    streams text[],
    versions bigint[],
    types text[],
    datas bytea[],
    claim_digests uuid[],
    claim_indexes integer[],
    claim_expires timestamptz[],
    claim_answers bytea[],
    key_subjects text[],
    key_materials bytea[]
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    head bigint;
    written bigint;
BEGIN
    -- Re-entrant for the session that holds it; whoever else holds it is the owner.
    IF NOT pg_try_advisory_xact_lock(1262243905, {N}) THEN
        RAISE EXCEPTION 'another session owns partition {N}' USING ERRCODE = 'KL003';
    END IF;
    SELECT coalesce(max(notification_id), 0) INTO head FROM ledger.events_p{N};
    IF head <> expected_head THEN
        RAISE EXCEPTION 'the head is %, not %', head, expected_head USING ERRCODE = 'KL001';
    END IF;

    INSERT INTO ledger.groups_p{N} (group_id, head) VALUES (new_group, head + cardinality(streams))
        ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the group is in the log already' USING ERRCODE = 'KL002';
    END IF;

    INSERT INTO ledger.events_p{N} (notification_id, originator_id, originator_version, topic, state)
        SELECT head + n, stream, version, type, data
        FROM unnest(streams, versions, types, datas) WITH ORDINALITY AS e (stream, version, type, data, n);

    IF cardinality(claim_digests) > 0 THEN
        -- Arrays that are empty because no claim has an expiry or an answer are padded with nulls.
        INSERT INTO ledger.claims_p{N} AS c (digest, position, expires_at, answer)
            SELECT digest, head + 1 + index, expires_at, answer
            FROM unnest(claim_digests, claim_indexes, claim_expires, claim_answers)
                AS n (digest, index, expires_at, answer)
            ON CONFLICT (digest) DO UPDATE
                SET position = excluded.position, expires_at = excluded.expires_at, answer = excluded.answer
                WHERE c.expires_at <= decided_at;
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written <> cardinality(claim_digests) THEN
            RAISE EXCEPTION 'a claim is taken' USING ERRCODE = 'KL002';
        END IF;
    END IF;

    IF cardinality(key_subjects) > 0 THEN
        INSERT INTO ledger.data_keys (subject, material)
            SELECT subject, material FROM unnest(key_subjects, key_materials) AS k (subject, material);
    END IF;
    RETURN head + cardinality(streams);
END
$body$;

-- Forgets expired claims and groups whose outcome nobody asks for any more; never an event.
CREATE FUNCTION ledger.prune_p{N}(groups_before timestamptz, claims_before timestamptz, most integer)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    pruned bigint;
    removed bigint;
BEGIN
    DELETE FROM ledger.groups_p{N} WHERE group_id IN (
        SELECT group_id FROM ledger.groups_p{N} WHERE at < groups_before LIMIT most);
    GET DIAGNOSTICS pruned = ROW_COUNT;
    DELETE FROM ledger.claims_p{N} WHERE digest IN (
        SELECT digest FROM ledger.claims_p{N} WHERE expires_at < claims_before LIMIT most);
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN pruned + removed;
END
$body$;

$template$, '{N}', new_partition::text);
END
$procedure$;

CALL ledger.create_partition(0);
