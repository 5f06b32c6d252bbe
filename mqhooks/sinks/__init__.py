"""
Sinks besides webhooks, and sinks made of other sinks.
"""

from mqhooks.sinks.capture import CaptureSink
from mqhooks.sinks.compose import FanOut, FilterSink, SampleSink
from mqhooks.sinks.description import sinkFromString
from mqhooks.sinks.log import LogSink
from mqhooks.sinks.maker import SinkMaker

__all__ = ["CaptureSink", "FanOut", "FilterSink", "LogSink", "SampleSink", "SinkMaker", "sinkFromString"]
