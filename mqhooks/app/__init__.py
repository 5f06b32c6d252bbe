"""The program: its settings as a whole, and what is built from them."""
