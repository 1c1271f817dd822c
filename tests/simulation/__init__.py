"""Many actors on one seed."""
