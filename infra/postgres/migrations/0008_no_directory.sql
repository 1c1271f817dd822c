-- It was to say which partition an organization lives in. There is one partition, and nothing read this.

DROP TABLE ledger.directory;
