"""keyfold-worker repartition: the input topic filled under another key, exactly once."""
