"""keyfold-tail: a topic of predictions, watched live."""
