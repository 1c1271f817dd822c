-- Rows hold their personal fields encrypted from here on. Those of before go with their files: what is
-- only deleted stays on its page. What they told is in the log; the next start reads it there, once.

DO $do$
DECLARE
    existing integer;
BEGIN
    DELETE FROM ledger.checkpoints;
    FOR existing IN SELECT partition FROM ledger.partitions LOOP
        EXECUTE format('TRUNCATE ledger.state_rows_p%s, ledger.state_rows_p%s_settled', existing, existing);
    END LOOP;
END
$do$;
