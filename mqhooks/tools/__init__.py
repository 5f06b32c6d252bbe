"""The tools around the bridge: a stand-in for VerneMQ, and a webhook endpoint that prints and can misbehave."""
