// Keys and buttons: what is pressed becomes an act.

import { shown, skippable, zoom } from "./desk.js";
import { $, ranks } from "./page.js";

const has = (selector) => $("desk").querySelector(selector) !== null;

// acts: functions of an event by name. choose(choice, event), skip(reason).
export function listen(acts, choose, skip) {
  addEventListener("keydown", (event) => onKey(event, acts, choose));
  document.addEventListener("click", (event) => {
    if (!$("menu").open || event.target.closest("#menu")) return;
    $("menu").open = false;  // and nothing else: what lies under it is not judged by that
    event.preventDefault();
    event.stopPropagation();
  }, true);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (event.detail) button.blur();  // else the next space would press it again
    const { act, choice, reason } = button.dataset;
    if (choice) choose(choice, event);
    else if (act) acts[act](event);
    else if (reason) { $("skip").close(); skip(reason); }
    else if ("close" in button.dataset) button.closest("dialog").close();
  });
  $("help-button").addEventListener("click", acts.help);
  $("rest-undo").addEventListener("click", acts.undo);
}

function onKey(event, acts, choose) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return inDialog(event);
  if ($("menu").open) return inMenu(event);
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
  const always = { u: acts.undo, "?": acts.help, z: acts.zoom, s: skippable() && acts.skip, " ": acts.play, r: acts.replay, v: acts.reveal };
  const act = onTask(key, event, acts, choose) ?? always[key];
  if (!act || (!shown && key !== "u" && key !== "?")) return;
  event.preventDefault();
  act(event);
}

// What a key means that depends on what is judged.
function onTask(key, event, acts, choose) {
  if (key === "b" && has('[data-choice="both_bad"]')) return () => choose("both_bad", event);
  if (ranks) {
    if (/^[1-8]$/.test(key)) return () => shown?.ranking.press(Number(key) - 1);
    return { t: acts.level, Enter: acts.done, Backspace: acts.back }[key];
  }
  const choice = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", t: "tie" }[key];
  if (choice && has(`[data-choice="${choice}"]`)) return () => choose(choice, event);
  return { q: () => shown?.play.listen(0), w: () => shown?.play.listen(1) }[key];
}

function inMenu(event) {
  if (event.key !== "Escape") return;
  $("menu").open = false;
  $("menu").querySelector("summary").focus();
}

function inDialog(event) {
  if (!$("skip").open || event.repeat) return;
  const button = $("skip").querySelectorAll("[data-reason]")[Number(event.key) - 1];
  if (button) { event.preventDefault(); button.click(); }
}
