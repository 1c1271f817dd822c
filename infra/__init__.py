"""How we reach the world: one package for each thing out there."""
