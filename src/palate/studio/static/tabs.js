// Tabs of one rater tell each other what they show, so that no two show the same.

const FRESH = 30_000;  // after so long without a word a tab is taken for closed

export class Tabs {
  constructor(space, name) {
    this.prefix = `palate:${space}:tab:`;
    this.mine = this.prefix + name;
    this.leases = [];
    setInterval(() => this.write(), 10_000);
    addEventListener("pagehide", () => localStorage.removeItem(this.mine));
    addEventListener("pageshow", () => this.write());
  }
  hold(leases) {
    this.leases = leases;
    this.write();
  }
  write() {
    try {
      localStorage.setItem(this.mine, JSON.stringify({ at: Date.now(), leases: this.leases }));
    } catch { /* then tabs do not know of each other, and the studio sorts it out */ }
  }
  others() {
    const held = new Set();
    for (const name of Object.keys(localStorage)) {
      if (!name.startsWith(this.prefix) || name === this.mine) continue;
      try {
        const { at, leases } = JSON.parse(localStorage.getItem(name));
        if (Date.now() - at < FRESH) leases.forEach((lease) => held.add(lease));
        else localStorage.removeItem(name);
      } catch {
        localStorage.removeItem(name);
      }
    }
    return held;
  }
}
