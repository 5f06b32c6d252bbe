// Takes CloudEvents with npm's SDK. Writes its port, then what the SDK makes of each request, as lines of JSON.
const http = require("http");
const { HTTP } = require("cloudevents");

const say = (what) => console.log(JSON.stringify(what));

const server = http.createServer(async (request, response) => {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  try {
    const found = [HTTP.toEvent({ headers: request.headers, body: Buffer.concat(pieces).toString() })].flat();
    found.forEach((event) => event.validate());
    say({ path: request.url, events: found.map((event) => event.toJSON()) });
    response.writeHead(204).end();
  } catch (error) {
    say({ path: request.url, problem: String(error) });
    response.writeHead(400).end(String(error));
  }
});
server.listen(0, "127.0.0.1", () => say({ port: server.address().port }));
process.stdin.on("end", () => process.exit()).resume();
