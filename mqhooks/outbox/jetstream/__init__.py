"""
The outbox that several machines share: a log for each partition of each webhook, in NATS JetStream.

- A client's deliveries are in one partition. Its log is a stream of numbered messages, each a batch of deliveries.
- Each partition has one owner, which delivers. Its lease and its checkpoint are the last message of a second subject of the
  stream, written by compare and set, so they fail only where the log does. There are no JetStream consumers.
- At least once: deliveries settled after the last checkpoint are sent again when an owner dies.
"""
