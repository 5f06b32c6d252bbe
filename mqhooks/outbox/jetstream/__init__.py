"""
The outbox that several machines share: a log for each partition of each webhook, in NATS JetStream.

- A client's deliveries are in one partition. Its log is a stream, with a number for each message; a message is a batch.
- Each partition has one owner, which delivers. Its lease and its checkpoint are the last message of a second subject of the
  stream, written by compare and set, so that they fail only where the log does. There are no JetStream consumers.
- At least once: what was settled after the last checkpoint is sent again when an owner dies.
"""
