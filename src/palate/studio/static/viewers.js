// One viewer for each kind of medium. A viewer loads at once, off the page, and says when it is ready:
//   { kind, node, ready: Promise, loaded, failed, start(), toggle(), replay(), stop(), playing }

import { bytes, element, later } from "./net.js";
import { soundViewer } from "./sound.js";

const PAUSES = [500, 1000, 2000, 4000, 8000];
const PATIENCE = 4000;  // milliseconds that a video may take to say that it would play to its end
const CRISP = 128;  // pixels: smaller pictures are shown with their pixels, not smoothed

export function viewer(medium, label) {
  const made = { picture, video, sound, text }[medium.kind](`/media/${medium.id}`, label);
  made.kind = medium.kind;
  made.loaded = made.failed = false;
  made.ready = made.ready.then(
    () => { made.loaded = true; },
    (error) => { made.failed = true; throw error; },
  );
  made.ready.catch(() => {});  // whoever shows it asks again
  return made;
}

// Media that do not come are asked for again; offline, when the connection is back.
export async function persistently(attempt) {
  for (let i = 0; ; i++) {
    try {
      return await attempt(i);
    } catch (error) {
      if (i >= PAUSES.length && navigator.onLine) throw error;
      await Promise.race([
        later(PAUSES[Math.min(i, PAUSES.length - 1)]),
        new Promise((done) => addEventListener("online", done, { once: true })),
      ]);
    }
  }
}

const still = { start() {}, toggle() {}, replay() {}, stop() {}, playing: false };

function picture(url, label) {
  const node = element("img", { alt: label, draggable: false, decoding: "async" });
  const ready = persistently(async (again) => {
    node.src = again ? `${url}?again=${again}` : url;
    await node.decode();
    node.classList.toggle("crisp", Math.max(node.naturalWidth, node.naturalHeight) <= CRISP);
  });
  return { ...still, node, ready };
}

function video(url, label) {
  const node = element("video", { muted: true, defaultMuted: true, playsInline: true, preload: "auto", disablePictureInPicture: true });
  node.setAttribute("aria-label", label);
  const ready = persistently((again) => new Promise((done, fail) => {
    const timer = setTimeout(() => urged(node, done), PATIENCE);
    const end = (act) => (event) => { clearTimeout(timer); act(event); };
    node.oncanplaythrough = end(done);
    node.onerror = end(() => fail(new Error("the video cannot be played")));
    node.src = again ? `${url}?again=${again}` : url;
    node.load();
  }));
  return { ...still, node, ready, stop() { node.pause(); } };
}

// Safari on a phone ignores `preload` and never says `canplaythrough` of a video that nobody began, and others do not
// where little memory or a slow line keeps them from loading ahead. After a while a video whose picture is there will do.
// Where there is none it is begun for a moment: muted and inline that needs no touch, but when the phone saves power; then
// the next touch or key does it.
function urged(node, done) {
  const shows = () => node.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA;
  if (shows()) return done();
  const stop = new AbortController(), { signal } = stop;
  const begin = () => node.play().catch(() => {});
  node.addEventListener("loadeddata", () => { stop.abort(); node.pause(); done(); }, { signal });
  for (const gesture of ["touchend", "click", "keydown"]) document.addEventListener(gesture, begin, { signal, capture: true });
  begin();
}

function text(url, label) {
  const inner = element("span");
  const node = element("div", { className: "text", tabIndex: 0 }, inner);
  node.setAttribute("role", "region");
  node.setAttribute("aria-label", label);
  const ready = persistently(async () => {
    inner.textContent = new TextDecoder().decode(await bytes(url));
  });
  return { ...still, node, ready };
}

function sound(url, label) {
  return soundViewer(persistently(() => bytes(url)), label);
}

// Videos run together: they start as one, are pulled together when they drift, and the shorter waits for the longer.
export function together(videos) {
  const nodes = videos.map((one) => one.node);
  let running = false;
  const begin = () => nodes.forEach((node) => { node.currentTime = 0; node.play().catch(() => {}); });
  nodes.forEach((node) => {
    node.onended = () => nodes.every((one) => one.ended || one.error) && running && begin();
    node.ontimeupdate = () => {
      const [first, ...rest] = nodes.filter((one) => !one.ended);
      for (const other of rest) {
        if (Math.abs(other.currentTime - first.currentTime) > 0.08) other.currentTime = first.currentTime;
      }
    };
  });
  return {
    get playing() { return running; },
    start() { running = true; begin(); },
    replay() { running = true; begin(); },
    toggle() {
      running = !running;
      if (running && nodes.every((one) => one.ended)) begin();
      else nodes.forEach((node) => running ? node.ended || node.play().catch(() => {}) : node.pause());
    },
    stop() {
      running = false;
      nodes.forEach((node) => { node.onended = node.ontimeupdate = null; node.pause(); });
    },
  };
}
