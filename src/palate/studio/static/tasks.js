// Tasks at hand: leases that the studio told of, their media loading ahead. The first is on the desk.

import { page, ranks } from "./page.js";
import { viewer } from "./viewers.js";

const AHEAD = 4;  // the one that is shown included
const MOST = 16;  // that the studio tells of at once
const LEAST = 5000;  // milliseconds that a lease must have left for its task to be begun

function taskOf(lease) {
  const n = lease.media.length;
  const name = (i) => ranks ? `Number ${i + 1} of ${n}` : i ? "Second" : "First";
  return {
    id: lease.id, prompt: lease.prompt, veiled: lease.veiled, media: lease.media,
    until: performance.now() + 1000 * lease.seconds, step: 0, answers: {}, since: 0,
    viewers: lease.media.map((medium, i) => viewer(medium, `${name(i)}, made for the prompt: ${lease.prompt}`)),
  };
}

function discard(task) {
  task.viewers.forEach((one) => one.stop());
}

export class Tasks {
  constructor(outbox, tabs) {
    this.outbox = outbox;
    this.tabs = tabs;
    this.queue = [];
    this.answered = new Set();  // leases
    tabs.onchange = () => this.share();
  }

  get first() { return this.queue[0]; }
  get full() { return this.queue.length >= AHEAD; }

  // How many leases to ask for. Those of other tabs, and of answers on their way, are told of again: all but the one that
  // is answered along with the question.
  wanted(answering) {
    const unsent = this.outbox.leases();
    unsent.delete(answering);
    return Math.min(AHEAD + this.tabs.others().size + unsent.size, MOST);
  }

  // Takes in what the studio told of, as far as it is not known, answered or another tab's.
  take(leases) {
    const others = this.tabs.others(), unsent = this.outbox.leases();
    for (const lease of leases) {
      const known = this.queue.find((task) => task.id === lease.id);
      if (known) known.until = performance.now() + 1000 * lease.seconds;
      else if (!this.full && !this.answered.has(lease.id) && !unsent.has(lease.id) && !others.has(lease.id)) this.queue.push(taskOf(lease));
    }
    this.hold();
  }

  // The first one is answered.
  next() {
    const task = this.queue.shift();
    this.answered.add(task.id);
    this.hold();
  }

  // A task is there again, from its beginning, at a place of the queue. known: as which it was shown before.
  again(lease, known, place) {
    const task = known?.id === lease.id ? known : this.queue.find((one) => one.id === lease.id) ?? taskOf(lease);
    if (lease.seconds !== undefined) task.until = performance.now() + 1000 * lease.seconds;
    Object.assign(task, { step: 0, answers: {} });
    this.answered.delete(task.id);
    this.queue = this.queue.filter((one) => one.id !== task.id);
    this.queue.splice(place, 0, task);
    this.hold();
  }

  // Drops what ran out unseen: the studio has given it to others.
  prune() {
    const until = performance.now() + LEAST;
    this.keep((task, i) => i === 0 || task.until >= until);
  }

  // Two tabs that were told of the same lease at the same moment do not both keep it.
  share() {
    const lost = this.tabs.lost();
    if (this.keep((task, i) => i === 0 || !lost.has(task.id))) this.hold();
  }

  clear() {
    this.keep(() => false);
  }

  keep(wanted) {
    const before = this.queue;
    this.queue = before.filter(wanted);
    before.filter((task) => !this.queue.includes(task)).forEach(discard);
    return before.length !== this.queue.length;
  }

  hold() {
    this.tabs.hold(this.queue.map((task) => task.id));
  }
}
