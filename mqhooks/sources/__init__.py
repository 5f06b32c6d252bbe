"""The ways in: each makes events of what comes and hands them to one sink."""
