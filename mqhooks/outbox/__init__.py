"""What was accepted and is not yet delivered."""
