"""Events are values, and agree with VerneMQ's proto files without needing them."""

import copy
import pickle
import subprocess
import sys

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.events import (
    FAILURES,
    HOOKS,
    M5_HOOKS,
    NO_PROPERTIES,
    REASONS,
    Event,
    MatchedACL,
    TopicInfo,
    UserProperties,
    failure_name,
    reason_name,
)
from mqhooks.pb.disconnect_reason_pb2 import Reason
from mqhooks.pb.matched_acl_pb2 import MatchedACL as ProtobufACL
from mqhooks.pb.on_register_failed_pb2 import RegistrationFailureReason
from mqhooks.pb.on_subscribe_pb2 import TopicInfo as ProtobufTopicInfo
from mqhooks.sources.sidecar.messages import MESSAGES
from mqhooks.testing import make_event


def numbered(enum, prefix):
    return [(name.removeprefix(prefix).lower(), number) for name, number in enum.items()]


class AgreementTests(SynchronousTestCase):
    def test_reasons_are_those_of_the_proto_files(self):
        self.assertEqual(list(zip(REASONS, range(99), strict=False)), numbered(Reason, "REASON_"))
        self.assertEqual(
            list(zip(FAILURES, range(99), strict=False)), numbered(RegistrationFailureReason, "REGISTRATION_REASON_")
        )

    def test_fields_and_defaults_are_those_of_the_proto_files(self):
        pairs = [(HOOKS[hook], message.protobuf) for hook, message in MESSAGES.items()]
        pairs += [(MatchedACL, ProtobufACL), (TopicInfo, ProtobufTopicInfo)]
        for values, protobuf in pairs:
            fields = sorted(protobuf.DESCRIPTOR.fields, key=lambda field: field.number)
            self.assertEqual(list(values.__struct_fields__), [field.name for field in fields], values)
            made, empty = values(), protobuf()
            for field in fields:
                default = getattr(made, field.name)
                if field.message_type is None and not field.is_repeated:
                    self.assertEqual((default, type(default)), (getattr(empty, field.name), type(getattr(empty, field.name))))
                else:
                    self.assertIn(default, (0, (), {}, MatchedACL()))

    def test_every_hook_travels(self):
        self.assertEqual(list(HOOKS), list(MESSAGES))

    def test_protobuf_is_not_needed(self):
        program = (
            "import sys; import mqhooks.events; sys.exit(any('protobuf' in name or '_pb2' in name for name in sys.modules))"
        )
        self.assertEqual(subprocess.run([sys.executable, "-c", program], check=False).returncode, 0)

    def test_nanomq_needs_no_source(self):
        program = (
            "import sys; import mqhooks.nanomq.rules, mqhooks.nanomq.bodies; "
            "sys.exit(any('mqhooks.sources' in name or '_pb2' in name for name in sys.modules))"
        )
        self.assertEqual(subprocess.run([sys.executable, "-c", program], check=False).returncode, 0)


class EventTests(SynchronousTestCase):
    def test_values_cannot_be_changed(self):
        event = make_event("on_publish")
        with self.assertRaises(AttributeError):
            event.message.topic = "other"

    def test_user_properties_are_a_value_too(self):
        properties = UserProperties({"b": "1", "a": "2"})
        self.assertEqual(hash(properties), hash(UserProperties({"a": "2", "b": "1"})))
        for same in (copy.deepcopy(properties), pickle.loads(pickle.dumps(properties))):
            self.assertEqual((same, type(same)), (properties, UserProperties))
        for change in (lambda each: each.update(a="b"), lambda each: each.__setitem__("a", "b"), lambda each: each.clear()):
            for each in (properties, NO_PROPERTIES):
                self.assertIn("cannot be changed", str(self.assertRaises(TypeError, change, each)))
        self.assertEqual((properties, NO_PROPERTIES), ({"a": "2", "b": "1"}, {}))

    def test_events_have_a_hash_with_user_properties_and_without(self):
        for hook in M5_HOOKS:
            events = [make_event(hook, user_properties=properties) for properties in ({}, {"a": "b"}, {"a": "b"})]
            self.assertEqual(len({make_event(hook), *events}), 2)

    def test_messages_of_different_hooks_differ(self):
        deliver, complete = (make_event(hook).message for hook in ("on_deliver", "on_delivery_complete"))
        self.assertNotEqual(deliver, complete)
        self.assertNotIsInstance(complete, type(deliver))

    def test_names_of_reasons(self):
        self.assertEqual((reason_name(0), reason_name(17), reason_name(18)), ("unspecified", "tcp_closed", "reason_18"))
        self.assertEqual(
            (failure_name(12), failure_name(13), failure_name(-1)), ("state_store_error", "reason_13", "reason_-1")
        )

    def test_fields_have_the_completed_username(self):
        event = msgspec.structs.replace(make_event("on_client_gone", username=""), username="remembered")
        self.assertIsInstance(event, Event)
        self.assertEqual(dict(event.fields())["username"], "remembered")
        self.assertEqual(event.message.username, "")
