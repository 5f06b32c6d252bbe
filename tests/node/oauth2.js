// oauth2-mock-server, with an id and a secret that it wants, and a life of its tokens in seconds: node oauth2.js ID SECRET LIFE
// Writes its port, then a line of JSON for each request: whether it was granted, the token, and when, in seconds.
const { OAuth2Server } = require("oauth2-mock-server");

const [id, secret, life] = process.argv.slice(2);
const expected = "Basic " + Buffer.from(`${id}:${secret}`).toString("base64");
const say = (what) => console.log(JSON.stringify(what));

async function main() {
  const server = new OAuth2Server();
  await server.issuer.keys.generate("RS256");
  let number = 0;
  server.service.on("beforeTokenSigning", (token) => {
    // Two tokens of the same second would be the same.
    token.payload.jti = String(++number);
  });
  server.service.on("beforeResponse", (answer, request) => {
    const granted = request.headers.authorization === expected;
    if (granted) answer.body.expires_in = Number(life);
    else Object.assign(answer, { statusCode: 401, body: { error: "invalid_client" } });
    say({ granted, token: answer.body.access_token, form: request.body, at: performance.now() / 1000 });
  });
  await server.start(0, "127.0.0.1");
  say({ port: server.address().port });
}

main();
process.stdin.on("end", () => process.exit()).resume();
