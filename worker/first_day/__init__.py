"""keyfold-worker init, --dry-run and --max-events: a bundle's first hour."""
