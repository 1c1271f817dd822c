"""Real edges, a real ledger, a real NATS and a network that misbehaves: a dead key is dead everywhere."""
