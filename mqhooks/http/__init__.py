"""
Requests out: one request in, one response or typed failure back.

:class:`~mqhooks.http.pooled.PooledTransport` is the default and the fast way.
:class:`~mqhooks.http.treqtransport.TreqTransport` sends through any agent that Twisted or treq knows.
"""
