"""``mqhooks schema``: the JSON Schema of the configuration, made of what reads it."""

import importlib.util
import json
import sys

import jsonschema
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.app.command import main
from mqhooks.nanomq.block import Bare
from mqhooks.nanomq.hocon import read
from tests.test_project_docs import DOCS, PROJECT, SECRET

GOOD = {"url": "http://h/", "events": [{"event": "on_publish"}]}


def plain(value):
    """Make JSON values of a file's: text without quotes may be a number or a boolean."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, Bare):
        try:
            return json.loads(value)
        except ValueError:
            return str(value)
    return value


class SchemaTests(SynchronousTestCase):
    def setUp(self):
        lines = []
        self.assertEqual(main(["schema"], lines.append), 0)
        self.text = "\n".join(lines) + "\n"
        schema = json.loads(self.text)
        jsonschema.Draft202012Validator.check_schema(schema)
        self.schema = schema
        self.validator = jsonschema.Draft202012Validator(schema)

    def is_good(self, values):
        return self.validator.is_valid(values)

    def test_is_what_reading_gives(self):
        spec = importlib.util.spec_from_file_location("generate_schema", PROJECT / "tools" / "generate_schema.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["generate_schema"] = module
        self.addCleanup(sys.modules.pop, "generate_schema")
        spec.loader.exec_module(module)
        self.assertEqual(self.text, module.generate(), "run make schema")

    def test_examples_are_good(self):
        examples = [*DOCS.glob("*.conf"), *DOCS.glob("examples/**/*.conf")]
        self.assertGreater(len(examples), 4)
        for path in examples:
            found = [
                error.message for error in self.validator.iter_errors(plain(read(str(path), {"WEBHOOK_SECRET": SECRET}).values))
            ]
            self.assertEqual(found, [], path.name)

    def test_what_may_be_written(self):
        for webhook in (
            {"enable": False},
            GOOD | {"cancel_timeout": 5000, "retry": {"max": "5m", "on": [408, "5xx"]}, "details": "on"},
            GOOD | {"limit": "100/s", "secret": ["whsec_x"], "body": '{"a": {{payload}}}'},
            GOOD | {"limit": {"rate": "100/s", "burst": 3}, "body": {"encoding": "base64"}, "headers": {"x-a": 7}},
            GOOD | {"events": {"1": {"event": "on_publish", "topic": "a/#", "body": {"anything": [1]}}}},
        ):
            self.assertTrue(self.is_good({"webhook": webhook, "mqtt": {}}), webhook)
            self.assertTrue(self.is_good({"webhooks": {"a": webhook}}), webhook)
        ours = {
            "sources": {"sidecar": {"listen": "off"}, "grpc": {"listen": ["tcp:1", "tcp:2"]}},
            "outbox": {"max_size": "5GiB"},
        }
        self.assertTrue(self.is_good({"mqhooks": ours}))

    def test_typical_mistakes_are_not(self):
        for webhook in (
            {},
            GOOD | {"url": "h:80"},
            GOOD | {"pol_size": 3},
            GOOD | {"pool_size": "many"},
            GOOD | {"pool_size": 0},
            GOOD | {"cancel_timeout": "5sec"},
            GOOD | {"events": [{"event": "on_publsh"}]},
            GOOD | {"events": [{"topic": "a"}]},
            GOOD | {"events": [{"event": "on_publish", "topics": "a"}]},
            GOOD | {"secret": "s3cret"},
            GOOD | {"tls": "on"},
            GOOD | {"retry": {"on": [200]}},
            GOOD | {"limit": {"rate": 7}},
            GOOD | {"body": {"encoding": "base32"}},
        ):
            self.assertFalse(self.is_good({"webhook": webhook}), webhook)
            self.assertFalse(self.is_good({"webhooks": {"a": webhook}}), webhook)
        for ours in (
            {"outbox": {"kind": "memori"}},
            {"outbox": {"max_size": "1Gb1"}},
            {"sources": {"sidecar": {"listen": 8890}}},
            {"sources": {"sidecar": {"port": 8890}}},
            {"notify": {"on": ["dwn"]}},
            {"webhook": GOOD},
        ):
            self.assertFalse(self.is_good({"mqhooks": ours}), ours)

    def test_every_key_has_words(self):
        def walk(properties, within):
            for key, schema in properties.items():
                parts = [schema, *schema.get("anyOf", ())]
                inner = [part["properties"] for part in parts if "properties" in part]
                if not inner and "$ref" not in json.dumps(schema):
                    self.assertGreater(len(schema.get("description", "")), 10, f"{within}{key}")
                for each in inner:
                    walk(each, f"{within}{key}.")

        walk(self.schema["properties"], "")
        walk(self.schema["$defs"]["webhook"]["anyOf"][1]["properties"], "webhook.")

    def test_defaults_and_limits_are_those_of_the_settings(self):
        webhook = self.schema["$defs"]["webhook"]["anyOf"][1]["properties"]
        self.assertEqual((webhook["pool_size"]["default"], webhook["pool_size"]["maximum"]), (32, 65535))
        self.assertEqual(webhook["retry"]["properties"]["max_age"]["default"], "72h")
        self.assertEqual(webhook["cancel_timeout"]["default"], "5s")
        self.assertEqual(
            self.schema["properties"]["mqhooks"]["properties"]["outbox"]["properties"]["max_size"]["default"], 1 << 30
        )
