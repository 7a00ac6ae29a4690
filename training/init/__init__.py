"""keyfold-train init: from an unknown log to a training.toml that trains as it is."""
