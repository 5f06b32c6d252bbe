"""The contracts that every provider of an interface has to keep."""
