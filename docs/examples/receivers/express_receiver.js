// Takes webhooks: verifies each, remembers its id, and prints its event.
//
//     WEBHOOK_SECRET=whsec_... node express_receiver.js

const express = require("express");
const { Webhook } = require("standardwebhooks");

const webhook = new Webhook(process.env.WEBHOOK_SECRET);
const app = express();

// The newest 100,000 ids: a Map keeps the order in which its keys came.
const seen = new Map();
function remember(id) {
  seen.set(id, true);
  if (seen.size > 100_000) seen.delete(seen.keys().next().value);
}

// The body as it came: what express.json() makes of it cannot be verified.
app.post("/hook", express.raw({ type: "*/*", limit: "20mb" }), (request, response) => {
  let event;
  try {
    event = webhook.verify(request.body, request.headers);
  } catch {
    return response.sendStatus(401);
  }
  const id = request.get("webhook-id");
  if (!seen.has(id)) {
    console.log(JSON.stringify(event));
    remember(id);
  }
  response.sendStatus(204);
});

app.listen(Number(process.env.PORT ?? 8080), "127.0.0.1");
