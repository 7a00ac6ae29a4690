"""keyfold-verify: the oracle. Shares no code with the worker's path beyond export's decoding."""
