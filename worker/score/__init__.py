"""keyfold-verify score and labels: predictions of a file, and predictions against late labels."""
