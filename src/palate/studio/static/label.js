// The labelling page: which task is shown, what a key does, what comes next.

import { post, Refused, Unreachable, element, later } from "./net.js";
import { Outbox } from "./outbox.js";
import { Tabs } from "./tabs.js";
import { viewer } from "./viewers.js";
import { pairStage, player, reveal, Zoom } from "./stage.js";
import { rankingStage } from "./ranking.js";
import { heard, struck, toast } from "./tell.js";

const page = JSON.parse(document.body.dataset.page);
const AHEAD = 4;  // tasks at hand, the one that is shown included
const $ = (id) => document.getElementById(id);
const desk = $("desk"), host = $("stage"), rest = $("rest");
const outbox = new Outbox(page.space);
const tabs = new Tabs(page.space, outbox.tab);
const zoom = new Zoom(host);
const ranks = page.kind === "ranking";

const queue = [];  // tasks; the first is on the desk
let shown = null;  // what is on the desk: { task, play, ranking }
let past = [];  // { key, task } of the latest answers
const answered = new Set();  // leases
let progress = null, unsaved = 0, session = 0;
let asking = null, undoing = false, said = "", heardOf = 0;
let pressed = 0;  // when the key of the last answer went down

// --- tasks -------------------------------------------------------------------------------------------------------------

function taskOf(lease) {
  const n = lease.media.length;
  const name = (i) => ranks ? `Number ${i + 1} of ${n}` : i ? "Second" : "First";
  return {
    id: lease.id, prompt: lease.prompt, veiled: lease.veiled, media: lease.media,
    until: performance.now() + 1000 * lease.seconds, step: 0, answers: {}, since: 0,
    viewers: lease.media.map((medium, i) => viewer(medium, `${name(i)}, made for the prompt: ${lease.prompt}`)),
  };
}

const loaded = (task) => task.viewers.every((one) => one.loaded);

// Keeps enough at hand. Leases that ran out unseen are dropped: the studio has given them to others.
async function fill() {
  if (asking) return asking;
  asking = (async () => {
    const before = heardOf, still = !outbox.entries().length;
    try {
      const now = performance.now();
      for (let i = queue.length - 1; i > 0; i--) if (queue[i].until < now + 5000) discard(queue.splice(i, 1)[0]);
      if (queue.length >= AHEAD) return;
      const others = tabs.others(), unsent = outbox.leases();
      const reply = await post("/api/lease", { n: Math.min(AHEAD + others.size + unsent.size, 16) });
      counted(reply.progress, still && heardOf === before && !outbox.entries().length);
      for (const lease of reply.leases) {
        const known = queue.find((task) => task.id === lease.id);
        if (known) known.until = performance.now() + 1000 * lease.seconds;
        else if (queue.length < AHEAD && !answered.has(lease.id) && !unsent.has(lease.id) && !others.has(lease.id)) queue.push(taskOf(lease));
      }
      tabs.hold(queue.map((task) => task.id));
      said = "";
    } catch (error) {
      said = error instanceof Refused && error.status === 401 ? "signed out" : "unreachable";
      if (!(error instanceof Refused || error instanceof Unreachable)) throw error;
    } finally {
      asking = null;
    }
    if (!shown && queue.length) show();
    else if (!shown) showRest();
    drawState();
  })();
  return asking;
}

// Replies overtake each other: only one that nothing was under way beside may lower the count (by an undo elsewhere).
function counted(told, exact) {
  progress = { ...progress, ...told, done: exact ? told.done : Math.max(told.done, progress?.done ?? 0) };
}

function discard(task) {
  task.viewers.forEach((one) => one.stop());
}

// --- the desk ----------------------------------------------------------------------------------------------------------

function show() {
  const task = queue[0];
  if (shown) {
    shown.play.stop();
    shown.ranking?.stop();
  }
  if (!task) {
    shown = null;
    showRest();
    return;
  }
  rest.hidden = true;
  desk.hidden = false;
  const ranking = ranks ? rankingStage(task, page, drawChoices, unveil) : null;
  const stage = ranking ? ranking.stage : pairStage(task, choose, unveil);
  shown = { task, ranking, play: player(task.viewers, drawTools) };
  stage.classList.add("enter");
  host.replaceChildren(stage);
  $("prompt").textContent = task.prompt;
  $("prompt").scrollTop = 0;
  zoom.set(zoom.on && zoom.can);
  task.since = 0;
  const mine = shown;
  Promise.all(task.viewers.map((one) => one.ready)).then(
    () => { if (shown === mine) { seen(); drawChoices(); } },
    () => { if (shown === mine) { drawChoices(); drawTools(); } },
  );
  if (loaded(task)) measured();
  drawQuestion();
  drawTools();
}

// All is there and nothing hides it: it plays, and the time that judging takes begins.
function seen() {
  const { task, play } = shown;
  if (task.veiled) return;
  task.since ||= performance.now();
  play.start();
}

// From the key to the next one on screen, for whoever measures.
function measured() {
  const start = pressed;
  pressed = 0;
  if (start) requestAnimationFrame(() => setTimeout(() => performance.measure("palate next", { start, end: performance.now() })));
}

function showRest() {
  desk.hidden = true;
  rest.hidden = false;
  host.replaceChildren();
  const kept = outbox.entries().length, happy = !said && !kept && progress?.done;
  $("rest-done").style.display = happy ? "" : "none";
  $("rest-wait").style.display = happy ? "none" : "";
  const title = said ? (said === "signed out" ? "You are signed out" : "No connection") : progress?.done ? "That is all for now. Thank you!" : "Nothing to judge yet";
  const text = said === "signed out" ? "Open your join link again. What you answered is kept in this browser."
    : said ? `${kept ? `${kept} of your answers are kept in this browser and are sent when the studio can be reached.` : "The studio cannot be reached."} This page goes on by itself.`
    : kept ? `${kept} of your answers are still on their way; keep this page open a little longer.`
    : progress?.done ? `Your ${progress.done} answers are saved. Should more come up, this page shows them by itself.`
    : "As soon as there is something, this page shows it by itself.";
  if ($("rest-title").textContent !== title) $("rest-title").textContent = title;
  $("rest-text").textContent = text;
  $("rest-undo").hidden = !progress?.done;
}

function drawQuestion() {
  const { task } = shown, many = page.questions.length > 1;
  $("question").textContent = page.questions[task.step].text;
  $("steps").hidden = !many;
  $("steps").replaceChildren(...page.questions.map((_, i) => element("i", { className: i === task.step ? "now" : i < task.step ? "past" : "" })));
  shown.ranking?.clear();
  const marks = { left: 0, right: 1 };
  const before = task.step ? marks[task.answers[page.questions[task.step - 1].dimension]] : undefined;
  host.querySelectorAll(".side").forEach((side, i) => side.classList.toggle("chosen", i === before));
  drawChoices();
}

// Why there can be no answer yet; empty if there can.
function locked() {
  const { task } = shown;
  if (page.locked && broken(task)) return "One of them could not be loaded: skip it.";
  if (page.locked && !loaded(task)) return "One moment, they are still loading.";
  return task.veiled ? "Look at them first: v shows them." : "";
}

const broken = (task) => task.viewers.some((one) => one.failed);

// Where nothing may be skipped, what does not load still may: it would end the rater's work.
const skippable = () => shown && (page.skip || broken(shown.task));

function drawChoices() {
  if (!shown) return;
  const shut = Boolean(locked()), { ranking } = shown;
  for (const button of $("choices").querySelectorAll("button")) {
    const done = button.dataset.act === "done";
    button.setAttribute("aria-disabled", String(shut || (done && !ranking.full)));
    if (button.dataset.act === "level") button.setAttribute("aria-pressed", String(ranking.level));
  }
}

function drawTools() {
  if (!shown) return;
  const tool = (act) => desk.querySelector(`.tools [data-act="${act}"]`);
  tool("zoom").hidden = !zoom.can;
  tool("zoom").setAttribute("aria-pressed", String(zoom.on));
  tool("zoom").classList.toggle("struck", zoom.on);
  tool("play").hidden = tool("replay").hidden = !shown.play.can;
  $("play-word").textContent = shown.play.playing ? "Pause" : "Play";
  tool("reveal").hidden = !shown.task.veiled;
  tool("skip").hidden = !skippable();
}

function unveil() {
  if (!shown?.task.veiled) return;
  shown.task.veiled = false;
  reveal(host);
  if (loaded(shown.task)) seen();
  drawChoices();
  drawTools();
}

// --- answering ---------------------------------------------------------------------------------------------------------

function choose(choice, event) {
  if (!shown || undoing) return;
  const shut = locked(), { task } = shown;
  if (shut) return toast(shut);
  struck(`[data-choice="${choice}"]`);
  answer(task, choice, event);
}

function answer(task, value, event) {
  task.answers[page.questions[task.step].dimension] = value;
  if (task.step + 1 < page.questions.length) {
    task.step++;
    drawQuestion();
    heard(page.questions[task.step].text);
  } else {
    pressed = event?.timeStamp ?? performance.now();
    finish(task, task.answers, "");
  }
}

function finish(task, answers, reason) {
  const seconds = task.since ? (performance.now() - task.since) / 1000 : null;
  const key = outbox.key();
  queue.shift();
  answered.add(task.id);
  past.push({ key, task });
  past = past.slice(-20);
  session++;
  tabs.hold(queue.map((one) => one.id));
  show();  // first what is seen, then what is sent
  outbox.add({ key, lease: task.id, answers, seconds, reason });
  heard(shown ? `Next: ${shown.task.prompt}` : $("rest-title").textContent);
  if (session % 50 === 0) toast(`${session} in a row. A good moment to rest your eyes.`);
  fill();
}

function skip(reason) {
  if (!shown) return;
  const { task } = shown;
  finish(task, Object.fromEntries(page.questions.map(({ dimension }) => [dimension, "skip"])), reason);
  toast("Skipped. u takes it back.");
}

async function undo() {
  if (undoing) return;
  if (shown?.ranking?.back()) return;
  if (shown?.task.step) {
    shown.task.step--;
    drawQuestion();
    return;
  }
  undoing = true;
  const last = past.pop();
  try {
    let task = last && outbox.withdraw(last.key) ? last.task : null;
    if (!task) {
      const reply = await takenBack(last);
      if (reply.status === "nothing") return toast("There is nothing to take back.");
      if (!reply.lease) return toast("Taken back. Somebody else has it now.");
      task = last?.task.id === reply.lease.id ? last.task : taskOf(reply.lease);
      task.until = performance.now() + 1000 * reply.lease.seconds;
    }
    again(task);
    toast("Taken back. Judge it again.");
  } catch (error) {
    if (last) past.push(last);
    toast(error instanceof Unreachable ? "It was sent already: taking it back needs a connection." : `It cannot be taken back: ${error.message}`, true);
  } finally {
    undoing = false;
    drawState();
  }
}

function again(task) {
  answered.delete(task.id);
  Object.assign(task, { step: 0, answers: {} });
  const at = queue.findIndex((one) => one.id === task.id);
  if (at >= 0) queue.splice(at, 1);
  queue.unshift(task);
  tabs.hold(queue.map((one) => one.id));
  show();
}

// What the studio has is taken back there: the rater's last answer, under a key, so that it happens once.
async function takenBack(last) {
  outbox.hurry();
  for (let i = 0; last && outbox.has(last.key); i++) {
    if (i >= 40) throw new Unreachable("not sent yet");
    await later(50);
  }
  const key = outbox.key();
  const reply = await post("/api/undo", { key }).catch((error) => {
    if (error instanceof Refused && !error.again) throw error;
    return later(700).then(() => post("/api/undo", { key }));
  });
  counted(reply.progress, true);
  return reply;
}

outbox.addEventListener("told", ({ detail }) => {
  heardOf += detail.status !== "waiting";
  if (detail.done !== undefined) counted({ done: detail.done }, false);
  if (detail.status === "late" || detail.status === "failed") past = past.filter(({ key }) => key !== detail.key);
  if (detail.status === "late") toast("That one had been given to somebody else meanwhile: this answer is not counted.", true);
  if (detail.status === "failed") toast(`An answer could not be saved: ${detail.why}. It is kept here; reload the page to send it again.`, true);
});
outbox.addEventListener("change", () => { drawState(); if (!shown) { showRest(); } });

// --- what is saved -----------------------------------------------------------------------------------------------------

function drawState() {
  const waiting = outbox.entries().length, failed = outbox.failures(), trouble = outbox.trouble;
  const state = $("state");
  clearTimeout(unsaved);
  const tell = (name, words) => { if (state.textContent !== words) state.textContent = words; state.dataset.state = name; };
  const kept = `${waiting} kept here`;
  if (said === "signed out" || trouble === "signed out") tell("failed", waiting ? `Signed out, ${kept}` : "Signed out");
  else if (trouble === "stale") tell("failed", `Reload the page, ${kept}`);
  else if (waiting && trouble) tell("waiting", `${trouble === "busy" ? "Waiting" : "Offline"}, ${kept}`);
  else if (!navigator.onLine) tell("waiting", "Offline");
  else if (waiting) unsaved = setTimeout(() => tell("waiting", `Saving ${waiting}`), 400);
  else if (failed) tell("failed", `${failed} not saved`);
  else tell("saved", progress?.done ? `${progress.done} saved` : "Ready");
  if (progress) {
    $("done").textContent = `all together ${Math.floor(100 * (progress.whole ?? 0))}%`;
    $("thread").style.transform = `scaleX(${progress.whole ?? 0})`;
  }
}

// --- keys and buttons --------------------------------------------------------------------------------------------------

const acts = {
  undo,
  skip: () => skippable() && $("skip").showModal(),
  help: () => $("help").showModal(),
  zoom: () => { zoom.set(!zoom.on); drawTools(); },
  play: () => shown?.play.toggle(),
  replay: () => shown?.play.replay(),
  reveal: unveil,
  back: () => shown?.ranking?.back() || undo(),
  level: () => shown?.ranking?.toggleLevel(),
  done: (event) => {
    if (!shown?.ranking || undoing) return;
    const shut = locked();
    if (shut) return toast(shut);
    if (!shown.ranking.full) return toast("Place all of them first; the last one finds its place by itself.");
    answer(shown.task, shown.ranking.groups(), event);
  },
};

const has = (selector) => desk.querySelector(selector) !== null;

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return inDialog(event);
  if (event.target.closest("input, select, textarea")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const native = event.target.closest("button, a, summary");
  if (native && (key === " " || key === "Enter")) return;
  if (zoom.on && event.shiftKey && key.startsWith("Arrow")) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    zoom.to(zoom.x + step[0] * 0.12, zoom.y + step[1] * 0.12);
    return event.preventDefault();
  }
  if (event.repeat || event.shiftKey && key !== "?") return;
  const act = onTask(key, event) ?? { u: acts.undo, "?": acts.help, z: acts.zoom, s: skippable() && acts.skip, " ": acts.play, r: acts.replay, v: acts.reveal }[key];
  if (!act || (!shown && key !== "u" && key !== "?")) return;
  event.preventDefault();
  act(event);
}

// What a key means that depends on what is judged.
function onTask(key, event) {
  if (ranks) {
    if (/^[1-8]$/.test(key)) return () => shown?.ranking.press(Number(key) - 1);
    return { t: acts.level, Enter: acts.done, Backspace: acts.back }[key];
  }
  const choice = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", t: "tie", b: "both_bad" }[key];
  if (choice && has(`[data-choice="${choice}"]`)) return () => choose(choice, event);
  return { q: () => shown?.play.listen(0), w: () => shown?.play.listen(1) }[key];
}

function inDialog(event) {
  if (!$("skip").open || event.repeat) return;
  const button = $("skip").querySelectorAll("[data-reason]")[Number(event.key) - 1];
  if (button) { event.preventDefault(); button.click(); }
}

addEventListener("keydown", onKey);
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!event.target.closest("#menu")) $("menu").open = false;
  if (!button) return;
  if (event.detail) button.blur();  // else the next space would press it again
  const { act, choice, reason } = button.dataset;
  if (choice) choose(choice, event);
  else if (act) acts[act](event);
  else if (reason) { $("skip").close(); skip(reason); }
  else if ("close" in button.dataset) button.closest("dialog").close();
});
$("help-button").addEventListener("click", acts.help);
$("look-again").addEventListener("click", () => { outbox.hurry(); fill(); });
$("rest-undo").addEventListener("click", undo);
$("leave").addEventListener("click", async () => {
  await post("/api/leave", {}).catch(() => {});
  location.replace("/join");
});
for (const [id, name] of [["blur", "blur"], ["opted-out", "opted_out"]]) {
  $(id)?.addEventListener("change", async ({ target }) => {
    try {
      await post("/api/preference", { [name]: target.checked });
      queue.splice(0).forEach(discard);
      shown?.play.stop();
      shown = null;
      await fill();
    } catch {
      target.checked = !target.checked;
      toast("This could not be saved; try again when there is a connection.", true);
    }
  });
}
addEventListener("online", () => { drawState(); fill(); });
addEventListener("offline", drawState);
addEventListener("beforeunload", (event) => { if (outbox.volatile.size) event.preventDefault(); });
setInterval(() => { if (!document.hidden || !shown) fill(); }, 20_000);

fill();
drawState();
