"""keyfold-state: looks at saved states, repairs them, copies them, hands outputs over."""
