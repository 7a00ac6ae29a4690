"""How a worker is: its pages, its watchdog and its last words."""
