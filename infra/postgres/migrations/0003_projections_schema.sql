-- Everything derived lives apart from the log: dropping this schema loses nothing.

CREATE SCHEMA projections;
