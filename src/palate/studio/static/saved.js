// What the page says of answers: saved, on their way, kept here; and what stands there when nothing is to be judged.

import { $ } from "./page.js";

export const standing = { progress: null, said: "" };  // said: why the studio gave no tasks, when it was last asked
let unsaved = 0;

// Replies overtake each other: only one that nothing was under way beside may lower the count (by an undo elsewhere).
export function counted(told, exact) {
  const { progress } = standing;
  standing.progress = { ...progress, ...told, done: exact ? told.done : Math.max(told.done, progress?.done ?? 0) };
}

export function drawState(outbox) {
  const waiting = outbox.entries(), failed = outbox.failures(), { trouble } = outbox, { progress, said } = standing;
  const state = $("state"), answers = waiting.filter((one) => !one.answer.undo).length;
  clearTimeout(unsaved);
  const tell = (name, words) => { if (state.textContent !== words) state.textContent = words; state.dataset.state = name; };
  const kept = answers ? `${answers} kept here` : "undo kept here";
  if (said === "signed out" || trouble === "signed out") tell("failed", waiting.length ? `Signed out, ${kept}` : "Signed out");
  else if (trouble === "stale") tell("failed", `Reload the page, ${kept}`);
  else if (waiting.length && trouble) tell("waiting", `${trouble === "busy" ? "Waiting" : "Offline"}, ${kept}`);
  else if (!navigator.onLine) tell("waiting", "Offline");
  else if (waiting.length) unsaved = setTimeout(() => tell("waiting", answers ? `Saving ${answers}` : "Taking back"), 400);
  else if (failed) tell("failed", `${failed} not saved`);
  else tell("saved", progress?.done ? `${progress.done} saved` : "Ready");
  if (progress) drawShare(progress);
}

// While more is to come than is there, the share of what is there says nothing.
function drawShare({ note, whole = 0 }) {
  const percent = whole > 0 && whole < 0.01 ? "under 1" : Math.floor(100 * whole);
  $("done").textContent = note ? "" : `all together ${percent}%`;
  $("thread").style.transform = `scaleX(${note ? 0 : whole})`;
}

export function drawRest(outbox) {
  const waiting = outbox.entries(), kept = waiting.filter((one) => !one.answer.undo).length;
  const { done, note } = standing.progress ?? {}, trouble = standing.said || outbox.trouble;
  const out = trouble === "signed out", cut = trouble && !out && trouble !== "busy", happy = !trouble && !waiting.length && !note && done;
  $("rest").hidden = false;
  $("rest-done").style.display = happy ? "" : "none";
  $("rest-wait").style.display = happy ? "none" : "";
  const title = out ? "You are signed out" : cut ? "No connection" : waiting.length ? "One moment"
    : note ? "More is to come" : done ? "That is all for now. Thank you!" : "Nothing to judge yet";
  const text = out ? "Open your join link again. What you answered is kept in this browser."
    : cut ? `${kept ? `${kept} of your answers are kept in this browser and are sent when the studio can be reached.` : `The studio cannot be reached, or was closed.${done ? ` Your ${done} answers are saved.` : ""}`} This page goes on by itself.`
    : waiting.length ? `${kept ? `${kept} of your answers are` : "What you took back is"} still on the way; keep this page open a little longer.`
    : note ? note : done ? `Your ${done} answers are saved. Should more come up, this page shows them by itself.`
    : "As soon as there is something, this page shows it by itself.";
  if ($("rest-title").textContent !== title) $("rest-title").textContent = title;
  $("rest-text").textContent = text;
  $("rest-undo").hidden = !done;
  if ($("rest-next")) $("rest-next").hidden = !happy;
}
