"""
A headless Chromium for tests, driven through chromedriver: https://www.w3.org/TR/webdriver2/.
"""

from __future__ import annotations

import atexit
import re
from base64 import b64decode
from contextlib import suppress
from json import dumps
from pathlib import Path
from shutil import which
from subprocess import DEVNULL, STDOUT, Popen
from tempfile import TemporaryDirectory
from urllib.request import ProxyHandler, Request, build_opener

import treq
from twisted.internet.defer import Deferred, inlineCallbacks
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
    # Only this machine has an address.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing() -> str | None:
    """Return why no browser can be driven here, in a line; ``None`` when one can."""
    absent = [program for program in PROGRAMS if which(program) is None]
    return f"{' and '.join(absent)} not found: make programs installs them on Debian" if absent else None


class Driver:
    """
    A chromedriver and the browser that it drives, for all tests of a process: starting them takes longer than most tests.

    :ivar session: the address of the browser's session.
    """

    def __init__(self):
        self.session = None
        self._process = None
        self._scratch = TemporaryDirectory(ignore_cleanup_errors=True)

    async def start(self, reactor):
        """Start driver and browser."""
        base = f"http://127.0.0.1:{await self._listen(reactor)}"
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {
                "binary": which("chromium"),
                "args": [*FLAGS, f"--user-data-dir={Path(self._scratch.name) / 'profile'}"],
            },
            "goog:loggingPrefs": {"browser": "ALL"},
            "unhandledPromptBehavior": "ignore",
        }
        opened = await ask(reactor, "POST", f"{base}/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"{base}/session/{opened['sessionId']}"

    async def _listen(self, reactor):
        """Start the driver on a port that it picks. It needs the port in IPv4 and IPv6, and ends when one of them is in use."""
        log = Path(self._scratch.name) / "log"
        for _ in range(5):
            # Not a process of the reactor's, since it outlives a test.
            with log.open("wb") as output:
                self._process = Popen([which("chromedriver"), "--port=0"], stdin=DEVNULL, stdout=output, stderr=STDOUT)
            while True:
                ended = self._process.poll() is not None
                said = log.read_text(encoding="utf-8", errors="replace")
                if found := re.search(r"started successfully on port (\d+)", said):
                    return int(found[1])
                if ended:
                    break
                await deferLater(reactor, 0.05)
            if "Address already in use" not in said:
                break
        raise AssertionError(f"chromedriver ended: {said}")

    def stop(self):
        """Stop browser and driver."""
        if self.session is not None:
            # There is no reactor any more.
            with suppress(OSError):
                build_opener(ProxyHandler({})).open(Request(self.session, method="DELETE"), timeout=10).close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._scratch.cleanup()


class Shared:
    """The driver of this process."""

    driver = None

    @classmethod
    async def get(cls, reactor):
        """Return the driver, and start it if necessary."""
        if cls.driver is None:
            driver = Driver()
            try:
                await driver.start(reactor)
            except BaseException:
                driver.stop()
                raise
            cls.driver = driver
        return cls.driver

    @classmethod
    def end(cls):
        """Stop the driver, if there is one."""
        driver, cls.driver = cls.driver, None
        if driver is not None:
            driver.stop()


atexit.register(Shared.end)


async def ask(reactor, method, url, what=None):
    """Send a driver a request, and return the answer's value."""
    data = None if what is None else dumps(what).encode()
    headers = {"content-type": "application/json"}
    answer = await treq.request(method, url, data=data, headers=headers, agent=Agent(reactor), reactor=reactor)
    value = (await treq.json_content(answer))["value"]
    if answer.code == 404:
        raise LookupError(value["message"])
    if answer.code != 200:
        raise AssertionError(f"{method} {url}: {value['error']}: {value['message']}")
    return value


class Browser:
    """
    A window of the browser, closed when the test case ends.

    :param case: the test case.
    :param reactor: runs it.
    """

    def __init__(self, case, reactor):
        self._case = case
        self._reactor = reactor
        self._session = None

    async def start(self):
        """Open the window."""
        self._session = (await Shared.get(self._reactor)).session
        self._case.addCleanup(self.stop)
        self._first = await self._ask("GET", "window")
        opened = await self._command("window/new", {"type": "window"})
        await self._command("window", {"handle": opened["handle"]})
        # Only one window has the focus, and it need not be this one.
        await self._tool("Emulation.setFocusEmulationEnabled", enabled=True)
        await self.complaints()

    @inlineCallbacks
    def stop(self):
        """Close the window. If that fails, the next test gets another browser."""
        try:
            yield Deferred.fromCoroutine(self._ask("DELETE", "window"))
            yield Deferred.fromCoroutine(self._command("window", {"handle": self._first}))
        except BaseException:
            Shared.end()
            raise

    async def open(self, url):
        """Go to an address and wait until it is loaded."""
        await self._command("url", {"url": url})

    async def run(self, script, *args):
        """Run the body of a function in the page, and return its result, or that of its promise."""
        return await self._command("execute/sync", {"script": script, "args": list(args)})

    async def until(self, expression, *args):
        """Wait for a JavaScript expression to be true, at most for the test case's timeout, and return its value."""
        while True:
            value = await self.run(f"return {expression}", *args)
            if value:
                return value
            await deferLater(self._reactor, 0.1)

    async def text(self, selector):
        """Return the visible text of an element."""
        return await self.run("return document.querySelector(arguments[0]).innerText", selector)

    async def click(self, selector):
        """Click on an element as a person does: it must be visible, and nothing may cover it."""
        await self._act(selector, "click", {})

    async def type(self, selector, text):
        """Type into an element."""
        await self._act(selector, "value", {"text": text})

    async def complaints(self):
        """Return the console's new messages: errors, refused requests, violations of the content security policy."""
        return [entry["message"] for entry in await self._command("se/log", {"type": "browser"})]

    async def dialog(self):
        """Return the text of a dialog that a script opened; ``None`` without one."""
        try:
            return await self._ask("GET", "alert/text")
        except LookupError:
            return None

    async def look(self, *, width, height, dark=False):
        """Show the page on a screen of this size, in this colour scheme."""
        await self._tool("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._tool("Emulation.setEmulatedMedia", features=[scheme])

    async def disable_scripts(self):
        """Disable the scripts of pages that are opened from now on; scripts of tests still run."""
        await self._tool("Emulation.setScriptExecutionDisabled", value=True)

    async def screenshot(self):
        """Return the screen as PNG."""
        return b64decode(await self._ask("GET", "screenshot"))

    async def _act(self, selector, action, what):
        """Act on an element, again if the page has just replaced or moved it, at most for the test case's timeout."""
        while True:
            try:
                return await self._command(f"element/{await self._find(selector)}/{action}", what)
            except LookupError:
                # The element was replaced after it was found.
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
        return await self._ask("POST", path, what)

    async def _ask(self, method, path, what=None):
        return await ask(self._reactor, method, f"{self._session}/{path}", what)
