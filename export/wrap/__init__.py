"""keyfold-export wrap: somebody's own model becomes a bundle."""
