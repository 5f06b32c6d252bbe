"""Small things that several rooms need and that know nothing of mqhooks."""
