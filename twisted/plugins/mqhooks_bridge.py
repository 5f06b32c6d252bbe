"""The ``mqhooks`` command of twistd."""

from twisted.application.service import ServiceMaker

mqhooks = ServiceMaker("mqhooks", "mqhooks.app.tap", "Relay VerneMQ's events as webhooks.", "mqhooks")
