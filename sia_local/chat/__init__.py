"""Many turns with one model pair: the session, its commands, none of the terminal."""
