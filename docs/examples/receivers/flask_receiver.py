"""
Takes webhooks: verifies each, remembers its id, and stores its event.

    WEBHOOK_SECRET=whsec_... python flask_receiver.py
"""

import os
import sqlite3

from flask import Flask, request
from standardwebhooks import Webhook, WebhookVerificationError

app = Flask(__name__)
webhook = Webhook(os.environ["WEBHOOK_SECRET"])
DATABASE = os.environ.get("DATABASE", "events.sqlite")


def connect():
    """One connection for each request; SQLite lets one of them write at a time."""
    return sqlite3.connect(DATABASE, isolation_level=None, timeout=4)


@app.post("/hook")
def hook():
    """Take one event in."""
    body = request.get_data()
    # The library wants names in lower case.
    headers = {name.lower(): value for name, value in request.headers.items()}
    try:
        webhook.verify(body, headers)
    except WebhookVerificationError:
        return "", 401
    database = connect()
    try:
        with database:
            # The id is the primary key: an event that is here already is left as it is.
            database.execute("INSERT OR IGNORE INTO events VALUES (?, ?)", (headers["webhook-id"], body.decode()))
    except sqlite3.OperationalError:
        # Locked, or the disk is full: it comes again.
        return "", 503
    finally:
        database.close()
    return "", 204


with connect() as database:
    database.execute("CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, body TEXT NOT NULL)")

if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "8080")))
