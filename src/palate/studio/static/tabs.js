// Tabs of one rater tell each other what they show, so that no two show the same.

const FRESH = 30_000;  // after so long without a word a tab is taken for closed

export class Tabs {
  constructor(space, name) {
    this.prefix = `palate:${space}:tab:`;
    this.mine = this.prefix + name;
    this.leases = [];
    this.onchange = () => {};
    setInterval(() => this.write(), 10_000);
    addEventListener("pagehide", () => localStorage.removeItem(this.mine));
    addEventListener("pageshow", () => this.write());
    addEventListener("storage", (event) => event.key?.startsWith(this.prefix) && this.onchange());
  }
  // What this tab has; the first is what it shows.
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
    return new Set(this.read().flatMap(({ leases }) => leases));
  }
  // What this tab is to let go of if it has it, too: what another shows, or what one whose name comes first has waiting.
  lost() {
    return new Set(this.read().flatMap(({ name, leases }) => name < this.mine ? leases : leases.slice(0, 1)));
  }
  read() {
    const found = [];
    for (const name of Object.keys(localStorage)) {
      if (!name.startsWith(this.prefix) || name === this.mine) continue;
      try {
        const { at, leases } = JSON.parse(localStorage.getItem(name));
        if (Date.now() - at < FRESH && Array.isArray(leases)) found.push({ name, leases });
        else localStorage.removeItem(name);
      } catch {
        localStorage.removeItem(name);
      }
    }
    return found;
  }
}
