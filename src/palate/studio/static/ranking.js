// Several to be put in order: press their numbers from the best to the worst, or drag them onto places.

import { element } from "./net.js";
import { frame } from "./stage.js";

const FAR = 6;  // pixels that a pointer moves before it drags

export function rankingStage(task, page, onchange, onreveal) {
  const n = task.viewers.length;
  const tiles = task.viewers.map((viewer, i) => {
    const tile = element("button", { className: "tile", type: "button" }, frame(viewer, String(i + 1), task.veiled, onreveal));
    tile.dataset.index = i;
    return tile;
  });
  const grid = element("div", { className: "tiles" }, ...tiles);
  grid.style.setProperty("--across", n <= 3 ? n : n === 4 || n > 6 ? 4 : 3);
  grid.style.setProperty("--narrow", n <= 4 ? 2 : 3);
  grid.classList.toggle("read", task.viewers.some((one) => one.kind === "text"));
  const places = element("div", { className: "places" }), said = element("span", { className: "word" });
  const strip = element("div", { className: "order" }, element("span", { className: "word", textContent: "Best" }), places, said);
  strip.setAttribute("aria-label", "Your order, the best first");
  const stage = element("div", { className: "ranking" }, grid, strip);
  const self = { stage, order: [], level: false, full: false };

  const placed = (i) => self.order.some((group) => group.includes(i));
  const without = (i) => self.order.map((group) => group.filter((one) => one !== i)).filter((group) => group.length);

  self.press = (i) => {
    if (i >= n) return;
    if (placed(i)) self.order = without(i);
    else if (self.level && self.order.length) self.order.at(-1).push(i);
    else self.order.push([i]);
    self.level = false;
    draw();
  };
  self.toggleLevel = () => { self.level = !self.level && self.order.length > 0; draw(); };
  self.back = () => {
    if (!self.order.length) return false;
    const last = self.order.at(-1);
    self.order = last.length > 1 ? [...self.order.slice(0, -1), last.slice(0, -1)] : self.order.slice(0, -1);
    self.level = false;
    draw();
    return true;
  };
  self.clear = () => { self.order = []; self.level = false; draw(); };
  // All are in it; the only one left takes the last place.
  self.groups = () => {
    const left = tiles.map((_, i) => i).filter((i) => !placed(i));
    return [...self.order.map((group) => [...group].sort()), ...(left.length ? [left] : [])];
  };
  // where: ["with", place] shares a place, ["at", place] goes in before it.
  self.drop = (i, [how, place]) => {
    const target = self.order[place];
    const before = how === "at" ? self.order.slice(0, place).filter((group) => group.some((one) => one !== i)).length : 0;
    self.order = without(i);
    if (how === "with") {
      const there = self.order.find((group) => target.some((one) => group.includes(one)));
      there ? there.push(i) : self.order.splice(Math.min(place, self.order.length), 0, [i]);
    } else {
      self.order.splice(before, 0, [i]);
    }
    draw();
  };

  function draw() {
    const place = new Map();
    self.order.forEach((group, p) => group.forEach((i) => place.set(i, p + 1)));
    self.full = place.size >= n - 1;
    tiles.forEach((tile, i) => {
      tile.querySelector(".place")?.remove();
      tile.classList.toggle("placed", place.has(i));
      tile.setAttribute("aria-label", `Number ${i + 1}, ${place.has(i) ? `${ordinal(place.get(i))} place` : "no place yet"}`);
      if (place.has(i)) tile.append(element("span", { className: "place", textContent: ordinal(place.get(i)) }));
    });
    const steps = self.order.flatMap((group, p) => [gap(p), step(group, p)]);
    places.replaceChildren(...steps, gap(self.order.length));
    said.textContent = hint(place.size);
    places.scrollLeft = places.scrollWidth;
    onchange();
  }
  function hint(count) {
    if (!count) return "press or touch them from the best to the worst, or drag here";
    if (self.level) return "the next one shares the last place";
    return count === n ? "Worst" : self.full ? "the one that is left is the worst" : `${n - 1 - count} more, then worst`;
  }
  function gap(p) {
    const made = element("span", { className: "gap" });
    made.dataset.at = p;
    return made;
  }
  function step(group, p) {
    const made = element("span", { className: "step" }, element("span", { className: "rank", textContent: ordinal(p + 1) }), ...group.map(thumb));
    made.dataset.with = p;
    return made;
  }
  function thumb(i) {
    const { kind, node } = task.viewers[i];
    const inside = kind === "picture" && !stage.querySelector(".veiled") ? node.cloneNode() : element("em", { textContent: i + 1 });
    inside.alt = "";
    inside.hidden = false;
    if (inside.style) inside.style.transform = "";
    const made = element("button", { className: "thumb", type: "button" }, inside);
    if (kind === "picture") made.append(element("b", { textContent: i + 1 }));
    made.setAttribute("aria-label", `Take number ${i + 1} off`);
    made.dataset.index = i;
    return made;
  }

  dragging(stage, self);
  draw();
  return self;
}

function ordinal(n) {
  return `${n}${["th", "st", "nd", "rd"][n] ?? "th"}`;
}

const OWN = ".veil, .sound .button";  // what does something of its own when it is pressed

// A pointer that goes down and up in one place presses; one that moves drags, or, by touch, looks around what is zoomed.
function dragging(stage, self) {
  let drag = null;
  const stop = new AbortController(), { signal } = stop;
  self.stop = () => stop.abort();
  const target = (event) => {
    const under = document.elementFromPoint(event.clientX, event.clientY);
    const step = under?.closest?.(".step"), gap = under?.closest?.(".gap");
    if (step) return [["with", Number(step.dataset.with)], step];
    if (gap) return [["at", Number(gap.dataset.at)], gap];
    return under?.closest?.(".order") ? [["at", self.order.length], stage.querySelector(".gap:last-of-type")] : null;
  };
  const mark = (node) => {
    stage.querySelectorAll(".over").forEach((one) => one.classList.remove("over"));
    node?.classList.add("over");
  };
  const end = (event, dropped) => {
    if (!drag) return;
    const { index, ghost } = drag;
    drag = null;
    mark(null);
    ghost?.remove();
    if (!dropped) return;
    const found = ghost && target(event);
    if (!ghost) self.press(index);
    else if (found) self.drop(index, found[0]);
  };
  stage.addEventListener("pointerdown", (event) => {
    const from = event.target.closest("[data-index]");
    if (!from || event.button || event.target.closest(OWN)) return;
    drag = { index: Number(from.dataset.index), x: event.clientX, y: event.clientY, from, ghost: null, id: event.pointerId };
  });
  addEventListener("pointermove", (event) => {
    if (!drag || event.pointerId !== drag.id) return;
    if (!drag.ghost && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > FAR) {
      if (event.pointerType === "touch" && drag.from.querySelector(".zoomed")) { drag = null; return; }
      drag.ghost = element("div", { className: "thumb lifted" }, element("em", { textContent: drag.index + 1 }));
      const picture = drag.from.querySelector("img");
      if (picture && !drag.from.querySelector(".veiled")) drag.ghost.replaceChildren(picture.cloneNode());
      document.body.append(drag.ghost);
    }
    if (drag.ghost) {
      drag.ghost.style.transform = `translate(${event.clientX - 48}px, ${event.clientY - 48}px)`;
      mark(target(event)?.[1]);
    }
  }, { signal });
  addEventListener("pointerup", (event) => drag && event.pointerId === drag.id && end(event, true), { signal });
  addEventListener("pointercancel", (event) => end(event, false), { signal });
  stage.addEventListener("click", (event) => {  // by Enter or a screen reader: a pointer was heard above
    const from = event.target.closest("[data-index]");
    if (from && event.detail === 0 && !event.target.closest(OWN)) self.press(Number(from.dataset.index));
  });
}
