"""
The transports: they take a request and return a response or a typed failure.

:class:`~mqhooks.http.pooled.PooledTransport` is the default, and fast.
:class:`~mqhooks.http.treqtransport.TreqTransport` sends through any agent of Twisted's or treq's.
"""
