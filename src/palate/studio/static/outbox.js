// Answers, and undos, on their way. Each is written into localStorage before it is sent and removed only when the studio
// has said what became of it, so that neither a broken connection nor a closed tab loses one. A key of its own makes each
// count once, however often it is sent; an undo is sent behind the answers before it and before those behind it, so that
// it takes back what was meant. The reply to an answer tells what is to be judged next.

import { post, Refused, later } from "./net.js";

const PAUSES = [1, 2, 4, 8, 15];  // seconds between attempts
const OTHERS = 15_000;  // an entry of another open tab is left to it for so long

export class Outbox extends EventTarget {
  constructor(space) {
    super();
    this.prefix = `palate:${space}:out:`;
    this.lost = `palate:${space}:failed:`;
    this.tabs = `palate:${space}:tab:`;
    this.tab = Math.random().toString(36).slice(2, 10);
    this.count = 0;
    this.attempt = 0;  // in a row without success
    this.trouble = "";  // why it does not get on, in words
    this.volatile = new Map();  // where the browser keeps nothing for us
    this.busy = false;
    this.wake = () => {};
    this.wants = () => 0;  // how many leases to ask for along with the answer of a lease
    addEventListener("online", () => this.hurry());
    addEventListener("storage", (event) => event.key?.startsWith(`palate:${space}:`) && this.changed());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
    this.retry();
    this.pump();
  }

  key() {
    const random = crypto.getRandomValues(new Uint8Array(16));
    return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  add(answer) {
    const at = Date.now();
    const name = `${this.prefix}${at.toString(36).padStart(10, "0")}-${String(this.count++).padStart(6, "0")}-${answer.key}`;
    this.keep(name, JSON.stringify({ answer, at, tab: this.tab }));
    this.changed();
    this.hurry();
  }

  keep(name, text) {
    try {
      localStorage.setItem(name, text);
    } catch {  // full or forbidden: kept in memory, which a closed tab loses
      this.volatile.set(name, text);
    }
  }

  names(prefix) {
    const all = new Set([...this.volatile.keys(), ...Object.keys(localStorage)]);
    return Array.from(all).filter((name) => name.startsWith(prefix)).sort();
  }

  entries() {
    return this.names(this.prefix).map((name) => this.read(name)).filter(Boolean);
  }

  read(name) {
    const text = this.volatile.get(name) ?? localStorage.getItem(name);
    try {
      return text === null ? null : { name, ...JSON.parse(text) };
    } catch {
      return null;
    }
  }

  // Takes an answer back that was never sent; false if it was.
  withdraw(key) {
    const entry = this.entries().find((one) => one.answer.key === key);
    if (!entry || entry.sent || this.sending === entry.name) return false;
    this.drop(entry.name);
    this.changed();
    return true;
  }

  has(key) {
    return this.entries().some((entry) => entry.answer.key === key);
  }

  leases() {
    return new Set(this.entries().filter((entry) => !entry.answer.undo).map((entry) => entry.answer.lease));
  }

  // Whether an undo of this tab, or of one that is gone, is on its way.
  undoes() {
    return this.entries().some((entry) => entry.answer.undo && this.mine(entry));
  }

  failures() {
    return this.names(this.lost).length;
  }

  // What was refused is sent once more whenever a page is opened: it may have been the studio's fault, or be mended now.
  retry() {
    for (const name of this.names(this.lost)) {
      const failed = this.read(name);
      if (!failed) continue;
      const { name: _, why, at, ...answer } = failed;
      this.drop(name);
      this.add(answer);
    }
  }

  drop(name) {
    this.volatile.delete(name);
    localStorage.removeItem(name);
  }

  hurry() {
    this.attempt = 0;
    this.wake();
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  async pump() {
    for (;;) {
      const entry = this.entries().find((one) => this.mine(one));
      if (!entry) {
        this.trouble = "";
        await this.sleep(5000);
      } else if (!(await this.send(entry))) {
        await this.sleep(1000 * PAUSES[Math.min(this.attempt++, PAUSES.length - 1)]);
      }
    }
  }

  // Also what a tab left behind that is closed or was reloaded.
  mine(entry) {
    return entry.tab === this.tab || localStorage.getItem(this.tabs + entry.tab) === null || Date.now() - entry.at > OTHERS;
  }

  sleep(milliseconds) {
    return Promise.race([later(milliseconds), new Promise((done) => { this.wake = done; })]);
  }

  async send(entry) {
    this.sending = entry.name;
    this.mark(entry);
    try {
      const { key, undo, lease } = entry.answer;
      const receipt = await (undo ? post("/api/undo", { key }) : post("/api/answer", { ...entry.answer, n: this.wants(lease) }));
      this.drop(entry.name);
      this.attempt = 0;
      this.trouble = "";
      this.tell(receipt.status, entry, undo ? { again: receipt.lease, progress: receipt.progress } : receipt);
      return true;
    } catch (error) {
      if (error instanceof Refused && !error.again && error.status !== 401 && error.status !== 403) {
        this.fail(entry, error.message);
        return true;
      }
      this.trouble = !(error instanceof Refused) ? "offline"
        : error.status === 401 ? "signed out" : error.status === 403 ? "stale" : "busy";
      this.tell("waiting", entry);
      return false;
    } finally {
      this.sending = null;
      this.changed();
    }
  }

  mark(entry) {
    if (entry.sent) return;
    const text = JSON.stringify({ answer: entry.answer, at: entry.at, tab: entry.tab, sent: true });
    if (this.volatile.has(entry.name)) this.volatile.set(entry.name, text);
    else try { localStorage.setItem(entry.name, text); } catch { /* it stays as it was */ }
  }

  // An answer that the studio refuses is not thrown away: it stays in this browser, and the page says so. An undo is, as
  // later it would take back something else.
  fail(entry, why) {
    this.drop(entry.name);  // first, so that there is room
    if (!entry.answer.undo) this.keep(this.lost + entry.answer.key, JSON.stringify({ ...entry.answer, why, at: entry.at }));
    this.tell("failed", entry, { why });
  }

  tell(status, entry, more = {}) {
    this.dispatchEvent(new CustomEvent("told", { detail: { ...more, status, ...entry.answer } }));
  }
}
