-- The same append, quicker: the epoch and the head in two plain statements instead of one join, and the
-- mark taken from the group's bytes instead of from its text (the cast needs PostgreSQL 18). It saves
-- 30 microseconds for each group, four in five of what marks had cost.

DO $do$
BEGIN
    IF current_setting('server_version_num')::integer < 180000 THEN
        RAISE EXCEPTION 'Keyledger needs PostgreSQL 18 or later, this is %', current_setting('server_version');
    END IF;
END
$do$;

CREATE PROCEDURE ledger.quicken_append(of_partition integer) LANGUAGE plpgsql AS $procedure$
BEGIN
EXECUTE replace($template$

-- KL001 the head moved, KL002 a claim is taken, KL003 another session owns the partition,
-- KL006 the log is of another history, or epoch, than the one that was decided on.
CREATE OR REPLACE FUNCTION ledger.append_p{N}(
    expected_head bigint,
    expected_mark bigint,
    expected_epoch integer,
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
    head_mark bigint;
    current_epoch integer;
    new_mark bigint;
    written bigint;
BEGIN
    -- Re-entrant for the session that holds it; whoever else holds it is the owner.
    IF NOT pg_try_advisory_xact_lock(1262243905, {N}) THEN
        RAISE EXCEPTION 'another session owns partition {N}' USING ERRCODE = 'KL003';
    END IF;
    -- Whoever raises the epoch locks the table: it waits for us, or we for it and see what it wrote.
    SELECT i.epoch INTO current_epoch FROM ledger.identity AS i;
    SELECT e.notification_id, e.mark INTO head, head_mark
        FROM ledger.events_p{N} AS e ORDER BY e.notification_id DESC LIMIT 1;
    IF NOT FOUND THEN
        head := 0;
        head_mark := 0;
    END IF;
    IF current_epoch IS DISTINCT FROM expected_epoch THEN
        RAISE EXCEPTION 'the epoch is %, not %', current_epoch, expected_epoch USING ERRCODE = 'KL006';
    END IF;
    IF head <> expected_head THEN
        RAISE EXCEPTION 'the head is %, not %', head, expected_head USING ERRCODE = 'KL001';
    END IF;
    IF head_mark <> expected_mark THEN
        RAISE EXCEPTION 'event % has another mark: the log is of another history', head USING ERRCODE = 'KL006';
    END IF;

    INSERT INTO ledger.groups_p{N} (group_id, head) VALUES (new_group, head + cardinality(streams))
        ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the group is in the log already' USING ERRCODE = 'KL002';
    END IF;

    new_mark := substring(uuid_send(new_group) FOR 8)::bigint;
    INSERT INTO ledger.events_p{N} (notification_id, originator_id, originator_version, topic, state, mark)
        SELECT head + n, stream, version, type, data, new_mark
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

$template$, '{N}', of_partition::text);
END
$procedure$;

ALTER PROCEDURE ledger.create_partition(integer) RENAME TO create_partition_with_slower_append;
CREATE PROCEDURE ledger.create_partition(new_partition integer) LANGUAGE plpgsql AS $procedure$
BEGIN
    CALL ledger.create_partition_with_slower_append(new_partition);
    CALL ledger.quicken_append(new_partition);
END
$procedure$;

DO $do$
DECLARE
    existing integer;
BEGIN
    FOR existing IN SELECT partition FROM ledger.partitions LOOP
        CALL ledger.quicken_append(existing);
    END LOOP;
END
$do$;
