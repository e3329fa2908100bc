// The desk: the task that is shown, its question, and which buttons may be pressed.

import { element } from "./net.js";
import { $, page, ranks } from "./page.js";
import { rankingStage } from "./ranking.js";
import { pairStage, player, reveal, Zoom } from "./stage.js";

const desk = $("desk"), host = $("stage");
export const zoom = new Zoom(host);
export let shown = null;  // what is on the desk: { task, play, ranking }

const loaded = (task) => task.viewers.every((one) => one.loaded);
const broken = (task) => task.viewers.some((one) => one.failed);

// pressed: when the key that it follows went down, for whoever measures.
export function show(task, choose, pressed) {
  stop();
  $("rest").hidden = true;
  desk.hidden = false;
  const ranking = ranks ? rankingStage(task, page, drawChoices, unveil) : null;
  const stage = ranking ? ranking.stage : pairStage(task, choose, unveil);
  shown = { task, ranking, play: player(task.viewers, drawTools) };
  stage.classList.add("enter");
  host.replaceChildren(stage);
  $("prompt").textContent = task.prompt;
  $("prompt").scrollTop = 0;
  zoom.set(false);  // a new one is seen whole first: what tells them apart may lie outside of what zoom shows
  task.since = 0;
  const mine = shown;
  Promise.all(task.viewers.map((one) => one.ready)).then(
    () => { if (shown === mine) { seen(); drawChoices(); } },
    () => { if (shown === mine) { drawChoices(); drawTools(); } },
  );
  if (loaded(task) && pressed) measured(pressed);
  drawQuestion();
  drawTools();
}

function stop() {
  shown?.play.stop();
  shown?.ranking?.stop();
  shown = null;
}

export function clear() {
  stop();
  desk.hidden = true;
  host.replaceChildren();
}

// All is there and nothing hides it: it plays, and the time that judging takes begins.
function seen() {
  const { task, play } = shown;
  if (task.veiled) return;
  task.since ||= performance.now();
  play.start();
}

// From the key to the next one on screen.
function measured(start) {
  requestAnimationFrame(() => setTimeout(() => performance.measure("palate next", { start, end: performance.now() })));
}

export function drawQuestion() {
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
export function locked() {
  const { task } = shown;
  if (page.locked && broken(task)) return "One of them could not be loaded: skip it.";
  if (page.locked && !loaded(task)) return "One moment, they are still loading.";
  return task.veiled ? "Look at them first: press Show." : "";
}

// Where nothing may be skipped, what does not load still may: it would end the rater's work.
export const skippable = () => shown && (page.skip || broken(shown.task));

function drawChoices() {
  if (!shown) return;
  const shut = Boolean(locked()), { ranking } = shown;
  for (const button of $("choices").querySelectorAll("button")) {
    const done = button.dataset.act === "done";
    button.setAttribute("aria-disabled", String(shut || (done && !ranking.full)));
    if (button.dataset.act === "level") button.setAttribute("aria-pressed", String(ranking.level));
  }
}

export function drawTools() {
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

export function unveil() {
  if (!shown?.task.veiled) return;
  shown.task.veiled = false;
  reveal(host);
  if (loaded(shown.task)) seen();
  drawChoices();
  drawTools();
}
