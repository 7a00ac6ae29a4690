"""keyfold-worker check: is everything there that a worker needs? Joins nothing, changes nothing."""
