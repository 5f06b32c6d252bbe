"""
A headless Chromium for tests, driven through chromedriver: https://www.w3.org/TR/webdriver2/.
"""

from __future__ import annotations

import re
from base64 import b64decode
from json import dumps
from pathlib import Path
from shutil import which

import treq
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.web.client import Agent

PROGRAMS = ("chromium", "chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--hide-scrollbars",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    # Nothing but this machine has an address.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing() -> str | None:
    """Why no browser can be driven here, in a line; ``None`` when one can."""
    absent = [program for program in PROGRAMS if which(program) is None]
    return f"{' and '.join(absent)} not found: make programs installs them on Debian" if absent else None


class Driver(ProcessProtocol):
    """chromedriver, on a port that it picks."""

    def __init__(self):
        self.port = Deferred()
        self.ended = Deferred()
        self.said = ""

    def outReceived(self, data):
        self.said += data.decode("utf-8", "replace")
        found = re.search(r"started successfully on port (\d+)", self.said)
        if found and not self.port.called:
            self.port.callback(int(found[1]))

    errReceived = outReceived

    def processEnded(self, reason):  # noqa: N802
        if not self.port.called:
            self.port.errback(AssertionError(f"chromedriver ended: {self.said}"))
        self.ended.callback(None)


class Browser:
    """
    One window of a browser of its own, closed when the test case ends.

    :param case: the test case.
    :param reactor: runs it.
    """

    def __init__(self, case, reactor):
        self._case = case
        self._reactor = reactor
        self._agent = Agent(reactor)
        self._driver = self._process = None
        self._session = None

    async def start(self):
        """Open the window."""
        profile = Path(self._case.mktemp()).resolve()
        profile.mkdir(parents=True)
        self._case.addCleanup(self.stop)
        self._base = f"http://127.0.0.1:{await self._drive()}"
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]},
            "goog:loggingPrefs": {"browser": "ALL"},
            "unhandledPromptBehavior": "ignore",
        }
        opened = await self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = opened["sessionId"]

    async def _drive(self):
        """Start the driver. It wants one port of both families, and ends when another has one of them just then."""
        left = 5
        while True:
            left -= 1
            self._driver = Driver()
            command = ["chromedriver", "--port=0"]
            self._process = self._reactor.spawnProcess(self._driver, which("chromedriver"), command, env=None)
            try:
                return await self._driver.port
            except AssertionError as error:
                if not left or "Address already in use" not in str(error):
                    raise

    @inlineCallbacks
    def stop(self):
        """Close the window and end the processes."""
        try:
            if self._session is not None:
                yield Deferred.fromCoroutine(self._ask("DELETE", f"/session/{self._session}"))
        finally:
            if self._process.pid:
                self._process.signalProcess("KILL")
            yield self._driver.ended

    async def open(self, url):
        """Go to an address and wait until it is loaded."""
        await self._command("url", {"url": url})

    async def run(self, script, *args):
        """Run the body of a function in the page; what it returns, or its promise resolves to."""
        return await self._command("execute/sync", {"script": script, "args": list(args)})

    async def until(self, expression, *args):
        """Wait for a JavaScript expression to be true; its value. The test case's timeout bounds it."""
        while True:
            value = await self.run(f"return {expression}", *args)
            if value:
                return value
            await deferLater(self._reactor, 0.1)

    async def text(self, selector):
        """What is seen of an element."""
        return await self.run("return document.querySelector(arguments[0]).innerText", selector)

    async def click(self, selector):
        """Click on an element as a person does: it has to be seen, and nothing may lie over it."""
        await self._act(selector, "click", {})

    async def type(self, selector, text):
        """Type into an element."""
        await self._act(selector, "value", {"text": text})

    async def complaints(self):
        """What the console has got since the last time: errors, refused requests, violations of the content's policy."""
        return [entry["message"] for entry in await self._command("se/log", {"type": "browser"})]

    async def dialog(self):
        """The text of a dialog that a script opened; ``None`` when there is none."""
        try:
            return await self._ask("GET", f"/session/{self._session}/alert/text")
        except LookupError:
            return None

    async def look(self, *, width, height, dark=False):
        """Show the page on a screen of this size, in this scheme."""
        await self._tool("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._tool("Emulation.setEmulatedMedia", features=[scheme])

    async def disable_scripts(self):
        """Run no scripts of pages that are opened from now on; those of tests still run."""
        await self._tool("Emulation.setScriptExecutionDisabled", value=True)

    async def screenshot(self):
        """The screen as PNG."""
        return b64decode(await self._ask("GET", f"/session/{self._session}/screenshot"))

    async def _act(self, selector, action, what):
        """Act on an element; once more when the page has just replaced or moved it. The test case's timeout bounds it."""
        while True:
            try:
                return await self._command(f"element/{await self._find(selector)}/{action}", what)
            except LookupError:
                # It was replaced since it was found.
                pass
            except AssertionError as error:
                if "element click intercepted" not in str(error) and "element not interactable" not in str(error):
                    raise
            await deferLater(self._reactor, 0.1)

    async def _find(self, selector):
        await self.until("document.querySelector(arguments[0])", selector)
        return (await self._command("element", {"using": "css selector", "value": selector}))[ELEMENT]

    async def _tool(self, name, **params):
        return await self._command("goog/cdp/execute", {"cmd": name, "params": params})

    async def _command(self, path, what):
        return await self._ask("POST", f"/session/{self._session}/{path}", what)

    async def _ask(self, method, path, what=None):
        data = None if what is None else dumps(what).encode()
        headers = {"content-type": "application/json"}
        answer = await treq.request(
            method, self._base + path, data=data, headers=headers, agent=self._agent, reactor=self._reactor
        )
        value = (await treq.json_content(answer))["value"]
        if answer.code == 404:
            raise LookupError(value["message"])
        if answer.code != 200:
            raise AssertionError(f"{method} {path}: {value['error']}: {value['message']}")
        return value
