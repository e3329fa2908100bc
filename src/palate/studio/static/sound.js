// Sounds: decoded once, drawn as a waveform, levelled against each other, one at a time.

import { element } from "./net.js";

let context = null;
const audio = () => (context ??= new AudioContext());

export function soundViewer(data, label) {
  const canvas = element("canvas");
  canvas.setAttribute("aria-hidden", "true");
  const word = element("span", { textContent: "Listen" });
  const button = element("button", { className: "button", type: "button" }, word);
  button.setAttribute("aria-label", `Listen: ${label}`);
  const node = element("div", { className: "sound" }, canvas, button);
  const self = {
    node, canvas, button, gain: 1, tall: 0.94, playing: false, at: 0, source: null, buffer: null, onplay() {}, onend() {},
    start() {},
    stop() {
      const source = self.source;
      self.source = null;
      self.playing = false;
      if (source) { source.onended = null; source.stop(); }
      self.show();
    },
    pause() {
      self.at = self.place();
      self.stop();
    },
    place() {
      return self.playing ? Math.min(audio().currentTime - self.began, self.buffer.duration) : self.at;
    },
    play(from = self.at) {
      if (!self.buffer) return;
      self.onplay(self);
      audio().resume();
      const level = audio().createGain();
      level.gain.value = self.gain;
      self.source = audio().createBufferSource();
      self.source.buffer = self.buffer;
      self.source.connect(level).connect(audio().destination);
      self.source.onended = () => { self.at = 0; self.stop(); self.onend(self); };
      self.began = audio().currentTime - from;
      self.source.start(0, from);
      self.playing = true;
      self.show();
      self.follow();
    },
    toggle() { self.playing ? self.pause() : self.play(); },
    replay() { self.stop(); self.play(0); },
    follow() {
      draw(self);
      if (self.playing) requestAnimationFrame(self.follow);
    },
    show() {
      word.textContent = self.playing ? "Pause" : self.at ? "Go on" : "Listen";
      if (self.buffer) draw(self);
    },
  };
  button.addEventListener("click", (event) => { event.stopPropagation(); self.toggle(); });
  new ResizeObserver(() => self.buffer && draw(self)).observe(canvas);
  self.ready = data.then((bytes) => new OfflineAudioContext(2, 1, 48000).decodeAudioData(bytes)).then((buffer) => {
    self.buffer = buffer;
    self.loudness = loudness(buffer);
    self.peaks = peaks(buffer, 400);
    self.show();
  });
  return self;
}

// Root mean square of what is not silence, over all channels.
function loudness(buffer) {
  let sum = 0, n = 0;
  for (let c = 0; c < buffer.numberOfChannels; c++) {
    for (const value of buffer.getChannelData(c)) {
      if (Math.abs(value) > 1e-3) { sum += value * value; n++; }
    }
  }
  return n ? Math.sqrt(sum / n) : 0;
}

// The key by which it is heard stands on its button.
export function keyed(sounds, keys) {
  sounds.forEach((one, i) => {
    if (keys[i] && !one.button.querySelector("kbd")) one.button.prepend(element("kbd", { textContent: keys[i], ariaHidden: "true" }));
  });
}

// The louder ones are turned down to the softest: nothing is ever turned up into clipping.
export function levelled(sounds) {
  const levels = sounds.map((one) => one.loudness).filter((level) => level > 0);
  const least = Math.min(...levels);
  for (const one of sounds) one.gain = one.loudness > 0 ? least / one.loudness : 1;
  const highest = Math.max(...sounds.map((one) => Math.max(...one.peaks) * one.gain), 1e-6);
  for (const one of sounds) one.tall = 0.94 / highest;  // drawn in one scale
  for (const one of sounds) one.onplay = () => sounds.forEach((other) => other !== one && other.playing && other.pause());
}

function peaks(buffer, n) {
  const found = new Float32Array(n), data = buffer.getChannelData(0);
  for (let i = 0; i < n; i++) {
    const end = Math.min(Math.ceil(((i + 1) * data.length) / n), data.length);
    for (let j = Math.floor((i * data.length) / n); j < end; j++) found[i] = Math.max(found[i], Math.abs(data[j]));
  }
  return found;
}

function draw(self) {
  const { canvas, peaks } = self, scale = devicePixelRatio || 1;
  const width = canvas.clientWidth * scale, height = canvas.clientHeight * scale;
  if (!width || !height) return;
  if (canvas.width !== Math.round(width) || canvas.height !== Math.round(height)) {
    canvas.width = Math.round(width);
    canvas.height = Math.round(height);
  }
  const brush = canvas.getContext("2d"), style = getComputedStyle(canvas);
  const bars = Math.max(24, Math.min(200, Math.floor(width / (5 * scale)))), step = width / bars;
  const heard = self.place() / self.buffer.duration;
  brush.clearRect(0, 0, width, height);
  for (let i = 0; i < bars; i++) {
    let peak = 0;
    for (let j = Math.floor((i * peaks.length) / bars); j <= Math.floor(((i + 1) * peaks.length) / bars - 1e-9); j++) peak = Math.max(peak, peaks[j]);
    const tall = Math.max(2 * scale, peak * self.gain * height * self.tall);
    brush.fillStyle = i / bars < heard ? style.color : style.getPropertyValue("--key-edge");
    brush.beginPath();
    brush.roundRect(i * step + step * 0.18, (height - tall) / 2, step * 0.64, tall, step * 0.3);
    brush.fill();
  }
}
