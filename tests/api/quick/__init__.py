"""Hot paths, spoken to as a server would."""
