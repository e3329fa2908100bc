// Requests to the studio. What is worth trying again is told apart from what was refused.

export class Refused extends Error {
  constructor(status, why) {
    super(why || `refused (${status})`);
    this.status = status;
  }
  get again() {  // it may go better later
    return this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

export class Unreachable extends Error {}

const csrf = document.querySelector('meta[name="csrf"]')?.content ?? "";

export async function post(path, body, { seconds = 15, keepalive = false } = {}) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), seconds * 1000);
  let reply, said;
  try {
    reply = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json", "x-csrf": csrf },
      body: JSON.stringify(body),
      credentials: "same-origin",
      signal: stop.signal,
      keepalive,
    });
    said = await reply.json().catch(() => null);
  } catch (error) {
    throw new Unreachable(String(error));
  } finally {
    clearTimeout(timer);
  }
  if (!reply.ok) throw new Refused(reply.status, said?.error);
  if (said === null) throw new Unreachable("the reply was cut short");
  return said;
}

export async function bytes(url) {
  const reply = await fetch(url, { credentials: "same-origin" });
  if (!reply.ok) throw new Refused(reply.status, "");
  return reply.arrayBuffer();
}

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const later = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
