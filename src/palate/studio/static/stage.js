// What stands on the desk: frames of equal size with a viewer in each, the veil over sensitive ones, and the zoom.

import { element } from "./net.js";
import { together } from "./viewers.js";
import { keyed, levelled } from "./sound.js";

const SCALE = 3;

export function frame(viewer, number, veiled, onreveal) {
  const waiting = element("div", { className: "loading", textContent: viewer.failed ? FAILED : "Loading" });
  const box = element("div", { className: "frame" }, viewer.node, waiting, element("span", { className: "badge", textContent: number }));
  box.querySelector(".badge").setAttribute("aria-hidden", "true");
  viewer.node.hidden = !viewer.loaded;
  waiting.hidden = viewer.loaded;
  viewer.ready.then(
    () => { viewer.node.hidden = false; waiting.hidden = true; },
    () => { waiting.textContent = FAILED; },
  );
  if (veiled) {
    box.classList.add("veiled");
    const words = element("span", {}, element("kbd", { textContent: "v" }), "Show");
    const veil = element("button", { className: "veil", type: "button" }, words);
    veil.setAttribute("aria-label", "This may be sensitive. Show it.");
    veil.addEventListener("click", (event) => { event.stopPropagation(); onreveal(); });
    box.append(veil);
  }
  return box;
}

const FAILED = "This could not be loaded. Skip it: something is broken.";

export function reveal(host) {
  for (const box of host.querySelectorAll(".veiled")) {
    box.classList.remove("veiled");
    box.querySelector(".veil").remove();
  }
}

export function pairStage(task, choose, onreveal) {
  const sides = task.viewers.map((viewer, i) => {
    const box = frame(viewer, String(i + 1), task.veiled, onreveal);
    const side = element("section", { className: "side" }, box);
    side.setAttribute("aria-label", i ? "Second, on the right" : "First, on the left");
    box.addEventListener("click", (event) => {
      if (!box.classList.contains("zoomed") && !event.target.closest(".text, .sound")) choose(i ? "right" : "left", event);
    });
    return side;
  });
  return element("div", { className: "sides" }, ...sides);
}

// Plays what a task shows: videos as one, sounds one after the other, on request.
export function player(viewers, onchange) {
  const videos = viewers.filter((one) => one.kind === "video");
  const sounds = viewers.filter((one) => one.kind === "sound");
  if (videos.length) {
    const reel = together(videos);
    return {
      can: true, get playing() { return reel.playing; },
      start() { if (!matchMedia("(prefers-reduced-motion: reduce)").matches) reel.start(); onchange(); },
      toggle() { reel.toggle(); onchange(); },
      replay() { reel.replay(); onchange(); },
      listen() {},
      stop() { reel.stop(); },
    };
  }
  if (sounds.length) {
    let last = sounds[0];
    const chosen = () => sounds.find((one) => one.playing) ?? last;
    const play = (one, act) => { last = one; one[act](); onchange(); };
    return {
      can: true, get playing() { return sounds.some((one) => one.playing); },
      start() {
        levelled(sounds);
        if (sounds.length === 2) keyed(sounds, ["q", "w"]);
        for (const one of sounds) {
          const alone = one.onplay;
          one.onplay = (self) => { alone(self); last = self; queueMicrotask(onchange); };
          one.onend = () => { last = sounds[(sounds.indexOf(one) + 1) % sounds.length]; onchange(); };
          one.show();
        }
      },
      toggle() { play(chosen(), "toggle"); },
      replay() { play(chosen(), "replay"); },
      listen(i) { if (sounds[i]) play(sounds[i], "toggle"); },
      stop() { sounds.forEach((one) => one.stop()); },
    };
  }
  return { can: false, playing: false, start() {}, toggle() {}, replay() {}, listen() {}, stop() {} };
}

// The same region of all, under the pointer or moved by keys. x, y: from 0 to 1.
export class Zoom {
  constructor(host) {
    this.host = host;
    this.on = false;
    this.x = this.y = 0.5;
    host.addEventListener("pointermove", (event) => {
      const box = this.on && event.target.closest?.(".frame, .tile");
      if (!box) return;
      const { left, top, width, height } = box.getBoundingClientRect();
      this.to((event.clientX - left) / width, (event.clientY - top) / height);
    });
  }
  get can() {
    return this.nodes().length > 0;
  }
  nodes() {
    return Array.from(this.host.querySelectorAll(".frame > img, .frame > video"));
  }
  set(on) {
    this.on = on && this.can;
    this.x = this.y = 0.5;
    for (const box of this.host.querySelectorAll(".frame")) box.classList.toggle("zoomed", this.on);
    this.draw();
  }
  to(x, y) {
    this.x = Math.min(1, Math.max(0, x));
    this.y = Math.min(1, Math.max(0, y));
    this.draw();
  }
  draw() {
    for (const node of this.nodes()) {
      const shift = (part) => `${(-part * (SCALE - 1) * 100).toFixed(3)}%`;
      node.style.transform = this.on ? `translate(${shift(this.x)}, ${shift(this.y)}) scale(${SCALE})` : "";
    }
  }
}
