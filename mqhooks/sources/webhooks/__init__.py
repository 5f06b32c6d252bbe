"""VerneMQ's own webhooks plugin, ``vmq_webhooks``: one HTTP request for each event, answered when the event is committed."""
