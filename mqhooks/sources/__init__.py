"""Sources: each decodes its input into events and hands them to one sink."""
