"""Tools for trying out the bridge: a simulator of VerneMQ, a webhook receiver that can misbehave, and a demo of all three."""
