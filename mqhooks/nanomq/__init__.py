"""NanoMQ's webhook contract: its configuration format, its rules and its JSON bodies. Nothing here needs a reactor."""
