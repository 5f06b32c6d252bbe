"""The program: settings, build(), reload, log and command line."""
