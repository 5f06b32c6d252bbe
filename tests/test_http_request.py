"""The bytes of requests."""

from twisted.trial.unittest import SynchronousTestCase

from mqhooks.delivery import Head, Request
from mqhooks.http.request import Renderer, Target, target


class RenderTests(SynchronousTestCase):
    def render(self, url="http://h/hook", headers=(), own=(("webhook-id", "msg_1"),), body=b"{}", method="POST", **more):
        head = Head(method, url, tuple(headers))
        return Renderer(head).render(Request(head, list(own), body, **more))

    def test_request(self):
        self.assertEqual(
            self.render("http://127.0.0.1:18880/hook?a=1", [("content-type", "application/json")], body='{"a":"é"}'.encode()),
            b"POST /hook?a=1 HTTP/1.1\r\nHost: 127.0.0.1:18880\r\ncontent-type: application/json\r\n"
            b'webhook-id: msg_1\r\nContent-Length: 10\r\n\r\n{"a":"\xc3\xa9"}',
        )

    def test_any_number_of_headers(self):
        for number in range(6):
            own = [(f"h{index}", f"v{index}") for index in range(number)]
            lines = b"".join(b"h%d: v%d\r\n" % (index, index) for index in range(number))
            self.assertEqual(
                self.render(own=own), b"POST /hook HTTP/1.1\r\nHost: h\r\n" + lines + b"Content-Length: 2\r\n\r\n{}"
            )

    def test_variation(self):
        self.assertTrue(self.render(method="POST", path="/x?y").startswith(b"POST /x?y HTTP/1.1\r\nHost: h\r\n"))
        head = Head("POST", "http://h/hook", ())
        rendered = Renderer(head).render(Request(head, [], b"x", method="PUT"))
        self.assertEqual(rendered, b"PUT /hook HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")

    def test_requests_that_have_no_body(self):
        self.assertNotIn(b"Content-Length", self.render(method="GET", body=b""))
        self.assertIn(b"Content-Length: 0\r\n", self.render(body=b""))

    def test_path_is_never_empty(self):
        for url, path in (("http://h", b"/"), ("http://h?token=1", b"/?token=1"), ("http://h/?a", b"/?a")):
            self.assertTrue(self.render(url).startswith(b"POST " + path + b" HTTP/1.1\r\nHost: h\r\n"), url)
        self.assertTrue(self.render(path="?a=1").startswith(b"POST /?a=1 HTTP/1.1\r\n"))

    def test_path_is_sent_as_it_is_written(self):
        self.assertTrue(self.render("http://h/%7Ea//b;c?d=%2f&e").startswith(b"POST /%7Ea//b;c?d=%2f&e HTTP/1.1\r\n"))

    def test_ipv6(self):
        self.assertIn(b"\r\nHost: [::1]:8080\r\n", self.render("http://[::1]:8080/"))

    def test_targets(self):
        self.assertEqual(target("https://H.example"), Target("https", "h.example", 443, "H.example", "/"))
        self.assertEqual(target("http://[::1]:8080/x?y"), Target("http", "::1", 8080, "[::1]:8080", "/x?y"))
        self.assertEqual((target("http://h:81/x").origin, target("http://h?x").url), ("http://h:81", "http://h/?x"))
