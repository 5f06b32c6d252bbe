"""Sources: each decodes what arrives into events and hands these to one sink."""
