"""NanoMQ's webhook contract: its configuration block, its rules and its JSON bodies. Nothing here needs a reactor."""
