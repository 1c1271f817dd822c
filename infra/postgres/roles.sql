-- What the service may do, and what programs that read the log from outside may do. Run by every `keyledger migrate`: roles belong
-- to the whole server, so creating one may be an administrator's task, done later.

DO $do$
DECLARE
    needed text;
    writable text;
    readable text;
BEGIN
    FOREACH needed IN ARRAY ARRAY['keyledger_service', 'keyledger_reader'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = needed) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', needed);
            END IF;
            -- Whoever creates a role without being a superuser administers it, and may not act in it.
            IF NOT pg_has_role(current_user, needed, 'SET') THEN
                EXECUTE format('GRANT %I TO CURRENT_USER WITH SET TRUE, INHERIT TRUE', needed);
            END IF;
        EXCEPTION
            -- Another database's migration has just done it (internal_error: "tuple concurrently
            -- updated"), or this user may not create roles.
            WHEN duplicate_object OR unique_violation OR internal_error OR insufficient_privilege THEN NULL;
        END;
    END LOOP;

    REVOKE ALL ON SCHEMA ledger FROM PUBLIC;
    REVOKE ALL ON ALL ROUTINES IN SCHEMA ledger FROM PUBLIC;

    -- Events, and which log they belong to: no data keys (personal fields stay unreadable), claims, state or owners.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'keyledger_reader') THEN
        GRANT USAGE ON SCHEMA ledger TO keyledger_reader;
        FOR readable IN
            SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'
                AND (tablename IN ('identity', 'partitions') OR tablename LIKE 'events\_p%')
        LOOP
            EXECUTE format('GRANT SELECT ON ledger.%I TO keyledger_reader', readable);
        END LOOP;
    END IF;

    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'keyledger_service') THEN
        RETURN;
    END IF;
    GRANT USAGE ON SCHEMA ledger TO keyledger_service;
    GRANT SELECT ON ALL TABLES IN SCHEMA ledger TO keyledger_service;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ledger TO keyledger_service;
    FOR writable IN
        SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'
            AND (tablename IN ('owners', 'checkpoints') OR tablename LIKE 'state\_rows\_p%')
    LOOP
        EXECUTE format('GRANT INSERT, UPDATE, DELETE ON ledger.%I TO keyledger_service', writable);
    END LOOP;

    -- A rebuild creates a second schema beside the live one and swaps them: it needs to own both.
    EXECUTE format('GRANT CREATE ON DATABASE %I TO keyledger_service', current_database());
    IF to_regnamespace('projections') IS NULL THEN
        RETURN;
    ELSIF pg_has_role(current_user, 'keyledger_service', 'SET') THEN
        ALTER SCHEMA projections OWNER TO keyledger_service;
    ELSE
        GRANT USAGE, CREATE ON SCHEMA projections TO keyledger_service;
    END IF;
END
$do$;
