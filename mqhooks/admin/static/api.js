// Talking to mqhooks: calls, and the stream of what is new.

const KEY = "mqhooks-token";

/** An answer that says no; the message is mqhooks' own. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
};

async function request(path, { method = "GET", json, signal, accept = "application/json" } = {}) {
  const headers = { accept };
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  // A page from elsewhere cannot set this one without asking first, and is not allowed to.
  if (method !== "GET") headers["x-mqhooks"] = "1";
  if (json !== undefined) headers["content-type"] = "application/json";
  const body = json === undefined ? undefined : JSON.stringify(json);
  const answer = await fetch(path, { method, headers, body, signal, cache: "no-store", credentials: "omit", redirect: "error" });
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, said.error ?? `mqhooks answered ${answer.status}`);
  }
  return answer;
}

export const get = async (path) => (await request(path)).json();

export const post = async (path, json) => (await request(path, { method: "POST", json })).json();

/** Call `heard(name, data)` with each server-sent event until the connection ends. An EventSource could not send the token. */
export async function follow(path, signal, heard) {
  const answer = await request(path, { signal, accept: "text/event-stream" });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let name = "message";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length) heard(name, JSON.parse(data.join("\n")));
        [name, data] = ["message", []];
      } else if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
    }
  }
}
