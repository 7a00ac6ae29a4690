"""How a Redis is reached, in all its forms, and why it does not let us in."""
