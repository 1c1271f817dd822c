"""The hot paths: verify, forward-auth, charges, reservations and self, in front of the router."""
